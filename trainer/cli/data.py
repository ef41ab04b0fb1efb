"""The command that makes training data: `prepare`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.streams import say, tell

if TYPE_CHECKING:
    from trainer.data.prepare import PrepareReport


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="txt, md, rst, jsonl, parquet (also .gz, .zst), folders, patterns, or hf:NAME[:CONFIG][@SPLIT][#REVISION]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write shards and manifest.json into.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="gpt2, shakespeare, bytes, a .tiktoken file, a folder with a tokenizer.json, hf:NAME, or a .model."
        ),
    ] = "gpt2",
    separator: Annotated[
        str | None,
        typer.Option(help="The special token between documents; what ends a text for the tokenizer by default."),
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos", help="Whether bos stands before each document; as the tokenizer has it by default."
        ),
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(help="The field that holds the text; text or content by default.")
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Sources to hold out, instead of a share of the text.")
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of the text to hold out.")] = 0.005,
    suffix: Annotated[
        list[str] | None,
        typer.Option(help="Other files to read as text, of a folder these alone: .py,.c (also given several times)."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Go on without what is there and cannot be read; each is named.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Threads that encode; all cores by default.")] = None,
) -> None:
    """Turn text into shards that a recipe's data.corpus names."""
    from trainer.data.prepare import prepare as prepare_corpus
    from trainer.data.sources import suffixes
    from trainer.data.tokenizer import load_tokenizer

    report = prepare_corpus(
        sources,
        out,
        load_tokenizer(tokenizer, separator=separator, begins_with_bos=bos),
        text_key=text_key,
        validation_fraction=validation_fraction,
        validation_sources=validation or (),
        suffixes=suffixes(suffix or ()),
        skip_unreadable=skip_unreadable,
        num_workers=workers,
        progress=_show_progress,
    )
    _tell(report, out)


def _tell(report: "PrepareReport", out: Path) -> None:
    from trainer.text import count, duration

    found = "was there already" if report.reused else f"written in {duration(report.seconds)}"
    share = report.validation_tokens / (report.train_tokens + report.validation_tokens)
    tell(
        f"\r{out} {found}: {count(report.train_tokens)} tokens to train on ({report.train_documents:,} documents), "
        f"{count(report.validation_tokens)} held out ({report.validation_documents:,}, {share:.2%}), {report.bytes_per_token:.2f} bytes a token"
    )
    for words in report.repeats:
        say(words)
    # From the project's folder, where data.corpus is meant from, `out` may be another place.
    corpus = out.resolve()
    setting = shlex.quote(f"data.corpus={corpus}")
    tell(f"Train on it with {setting} on the command line, or {corpus} as data.corpus of a recipe.")


def _show_progress(documents: int, tokens: int) -> None:
    from trainer.text import count

    say(f"\r{count(documents)} documents, {f'{count(tokens)} tokens' if tokens else 'measured'} ", end="")
