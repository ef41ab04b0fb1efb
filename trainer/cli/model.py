"""The commands that use the model of a checkpoint: `eval`, `generate`, `export`."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.options import JsonOption, RunArgument, with_options
from trainer.streams import answer, say, tell


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="The folder to make; from_pretrained opens it.")],
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest",
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32 weights; as they are stored by default.")
    ] = None,
    license: Annotated[
        str, typer.Option(help="The licence that the model card names, as the hub writes it: mit, apache-2.0 ...")
    ] = "unknown",
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer open."""
    from trainer.checkpoint.resume.select import locate
    from trainer.config.folders import find_checkpoints
    from trainer.export import export_checkpoint

    located = locate(find_checkpoints(run), checkpoint)
    say(located.words)
    tell(str(export_checkpoint(located.path, out, dtype=dtype, license=license)))


@dataclass(frozen=True)
class GenerateOptions:
    """What is continued, how the tokens are chosen, and how much is written."""

    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to continue; repeatable. -, or none beside a pipe: standard input.")
    ] = None
    prompts_file: Annotated[
        Path | None, typer.Option(help="Prompts: one a line, or objects with a field prompt in a .jsonl file.")
    ] = None
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest"
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200
    num_samples: Annotated[int, typer.Option(min=1, help="Texts for each prompt.")] = 1
    temperature: Annotated[float, typer.Option(min=0.0, max=1e6, help="0 takes the likeliest token every time.")] = 0.8
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest; 0: among all.")] = 50
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Choose among the likeliest, up to this share.")] = 1.0
    min_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Choose among those with this share of the largest probability.")
    ] = 0.0
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")] = 0
    stop: Annotated[list[str] | None, typer.Option(help="The text ends before this; repeatable.")] = None
    rows_at_once: Annotated[int, typer.Option(min=1, help="Texts that are computed together.")] = 16
    as_json: JsonOption = False


@with_options
def generate(run: RunArgument, options: GenerateOptions) -> None:
    """Continue texts with a checkpoint's model; they are shown as they are written."""
    from trainer.checkpoint.resume.select import locate
    from trainer.config.folders import find_checkpoints
    from trainer.generation.prompts import gather_prompts

    prompts = gather_prompts(options.prompt or [], options.prompts_file, sys.stdin)
    located = locate(find_checkpoints(run), options.checkpoint)
    say(located.words)
    from trainer.evaluation.generate import Sampling
    from trainer.export import open_model
    from trainer.generation.texts import Text, TextPrinter, continue_texts, exit_code, summary

    trained = open_model(located.path)
    texts = [Text(words, number) for words in prompts for number in range(options.num_samples)]
    printer = TextPrinter(texts, sys.stdout, as_json=options.as_json, facts=located.facts())
    sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)
    started = time.perf_counter()
    continue_texts(
        trained.model,
        trained.tokenizer,
        texts,
        trained.limits(options.max_new_tokens),
        sampling=sampling,
        seed=options.seed,
        stops=options.stop or (),
        rows_at_once=options.rows_at_once,
        show=printer.show,
        close=printer.close,
    )
    say(summary(texts, time.perf_counter() - started, trained.sequence_length))
    sys.exit(exit_code(texts))


def evaluate(
    run: RunArgument,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="shakespeare_lines, files of items (JSONL), or hellaswag, piqa ... from the hub; several by commas."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Take the loss on this: a folder of trainer prepare, or shards; the run's own held-out text by default."
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task, or sequences of held-out text, from the front.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute a checkpoint's validation loss, in nats per token and bits per byte; with --tasks its accuracy on tasks."""
    from trainer.evaluate import Asked
    from trainer.evaluate import evaluate as evaluate_run

    def show_progress(task: str, fraction: float) -> None:
        if fraction == 1 or sys.stderr.isatty():
            say(f"\r{task} {fraction:.0%} ", end="\n" if fraction == 1 else "")

    names = None if tasks is None else [name for words in tasks for name in words.split(",") if name]
    evaluation = evaluate_run(run, checkpoint, Asked(tasks=names, data=data, limit=limit), show_progress)
    if evaluation.is_main:
        answer(json.dumps(evaluation.records(), indent=1) if as_json else evaluation.text())
