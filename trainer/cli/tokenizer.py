"""The commands of `trainer tokenizer`: they make one, and say what others are."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.options import JsonOption
from trainer.streams import answer, say, tell

tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, or compare some.")

TextKeyOption = Annotated[str | None, typer.Option(help="The field that holds the text; text or content by default.")]


@tokenizer_app.command()
def train(
    sources: Annotated[
        list[str], typer.Argument(help="Text in the forms of prepare: files, folders, patterns, hf:NAME.")
    ],
    vocab_size: Annotated[int, typer.Option(help="Ids in the end, the special tokens counted, such as 32768.")],
    out: Annotated[Path, typer.Option(help="The folder to make; prepare and data.tokenizer take it.")],
    special: Annotated[
        list[str] | None, typer.Option(help="A special token besides <|endoftext|>, such as <|user|>; repeatable.")
    ] = None,
    sample_bytes: Annotated[int, typer.Option(help="Text that is trained on at most; of more a sample is taken.")] = 512
    << 20,
    text_key: TextKeyOption = None,
    suffix: Annotated[
        list[str] | None, typer.Option(help="Other files to read as text, of a folder these alone: .py,.c.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Go on without what is there and cannot be read; each is named.")
    ] = False,
) -> None:
    """Train a byte-level BPE tokenizer on text; the same text gives the same one, on every machine."""
    from trainer.config.folders import command_line
    from trainer.data.sources import suffixes
    from trainer.data.train_tokenizer import train_tokenizer
    from trainer.text import duration, size

    trained = train_tokenizer(
        sources,
        out,
        vocab_size,
        specials=special or (),
        max_sample_bytes=sample_bytes,
        text_key=text_key,
        suffixes=suffixes(suffix or ()),
        skip_unreadable=skip_unreadable,
        progress=lambda num_bytes: say(f"\r{size(num_bytes)} of text read ", end=""),
    )
    whole = trained.sample_bytes == trained.text_bytes
    of = "" if whole else f", a sample of {size(trained.text_bytes)} (--sample-bytes)"
    tell(
        f"\r{out} written in {duration(trained.seconds)}: {trained.vocab_size:,} ids, trained on {size(trained.sample_bytes)} of text{of}"
    )
    tell(f"Use it: {command_line('prepare', 'SOURCE...', '--out', 'DIR', '--tokenizer', str(out))}")


@tokenizer_app.command()
def show(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="gpt2, shakespeare, bytes, a .tiktoken file, a folder of a tokenizer, hf:NAME, a .model.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to try them on, in the forms of prepare; repeatable. Twelfth Night by default."),
    ] = None,
    text_key: TextKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what tokenizers are, side by side: ids, special tokens and their roles, bytes of a text per token."""
    from trainer.data.describe_tokenizer import describe, read_text, side_by_side
    from trainer.data.tokenizer import load_tokenizer

    opened = {name: load_tokenizer(name) for name in names}
    texts = {name: read_text(name, text_key) for name in text or ("embedded:shakespeare@validation",)}
    described = [describe(name, tokenizer, texts) for name, tokenizer in opened.items()]
    answer(json.dumps([each.as_json() for each in described], indent=1) if as_json else side_by_side(described))
