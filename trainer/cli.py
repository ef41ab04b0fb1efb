"""The commands, one short function each. Whatever is slow to import is imported inside the command that needs it."""

import errno
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli_bench import bench_app
from trainer.cli_checkpoints import JsonOption, RunArgument, checkpoints_app
from trainer.cli_doctor import doctor, install_fp8
from trainer.cli_launch import launch, report_command
from trainer.cli_runs import runs_app
from trainer.errors import ConfigError, TrainerError, is_out_of_memory
from trainer.streams import Unheard, answer, make_ready, need_not_be_heard, say, settle, tell
from trainer.text import nearest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Language-model pretraining on Accelerate. Without a command: launch CLUSTER RECIPE KEY=VALUE..., all of which may be left out.",
)
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(runs_app, name="runs")
app.command()(launch)
app.command(name="report")(report_command)
app.command()(doctor)
app.command()(install_fp8)
app.add_typer(bench_app, name="bench")

DOOR = "TRAINER_DOOR"
"""Set by launch.sh to how it was called: then these commands are its own."""

_UsageError = typer.BadParameter.__base__
"""What typer raises for words that do not fit a command; it has no public name."""


def main() -> None:
    """Runs a command; what a person has to mend becomes one paragraph on standard error and an exit code, usually 2."""
    make_ready()
    try:
        try:
            _run()
        finally:
            settle()
    except Unheard as error:
        if error.errno != errno.EPIPE:  # whoever read has enough, as `head` has
            say(
                f"error: standard output cannot be written ({error.reason}); make room there, or send it elsewhere, and ask again"
            )
        sys.exit(error.exit_code)


def _run() -> None:
    door = os.environ.pop(DOOR, None)
    command = typer.main.get_command(app)
    try:
        words = with_command(sys.argv[1:], list(command.commands), is_launch_sh=door is not None)
        code = command.main(words, prog_name=door or "trainer", standalone_mode=False)
    except TrainerError as error:
        if error.was_said:
            sys.exit(error.exit_code)
        _refuse(str(error), error.exit_code)
    except _UsageError as error:
        if words := error.format_message():
            form = shlex.join([_program(door), *_commands_of(error), "--help"])
            _refuse(f"{words}{'' if words.endswith(('.', '?')) else '.'} The form is shown by: {form}")
        sys.exit(2)  # a bare `trainer` has shown its help
    except (MemoryError, RuntimeError) as error:
        if (
            not is_out_of_memory(error) and type(error).__name__ != "OutOfMemoryError"
        ):  # torch's, of a GPU, which is not imported here
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        _refuse(
            f"the memory does not hold what this needs ({said}); end what else uses it, or take a smaller model or fewer at once",
            1,
        )
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # Any word may be typed as a path, and any look at it may be the first.
        _refuse(
            f"the path {error.filename} cannot be used: it, or a name in it, is too long for this disk; give a shorter one"
        )
    except typer.Abort:
        sys.exit(130)
    sys.exit(code or 0)


def _program(door: str | None) -> str:
    """How this program was called, for a person who pastes it: by launch.sh, by its name where a shell finds it, or by its path."""
    if door is not None:
        return door
    is_path = Path(sys.argv[0]).name == "trainer" and shutil.which("trainer") != sys.argv[0]
    return sys.argv[0] if is_path else "trainer"


def _commands_of(error: Exception) -> list[str]:
    """The command, and the one within its group, to which a usage error belongs."""
    context, names = getattr(error, "ctx", None), []
    while context is not None and context.parent is not None:
        context, names = context.parent, [context.info_name, *names]
    return names


def with_command(words: list[str], commands: list[str], *, is_launch_sh: bool) -> list[str]:
    """The words with the command that they leave out: those of a run alone mean `launch`.

    raises  ConfigError for a first word that is most likely a command with a typing mistake
    """
    from trainer.config.cluster import cluster_names
    from trainer.config.load import recipe_names

    first = words[0] if words else ""
    if not first:
        return ["launch"] if is_launch_sh else []
    if first in (*commands, "-h", "--help"):
        return words
    names = [*cluster_names(), *recipe_names()]
    is_of_a_run = (
        first in names or "=" in first or "/" in first or first.endswith((".yaml", ".yml")) or first.startswith("-")
    )
    if not is_of_a_run and (meant := nearest(first, [*commands, *names])) in commands:
        raise ConfigError(f"No such command {first!r}; did you mean {meant!r}? All are shown by: --help")
    return ["launch", *words] if is_of_a_run or is_launch_sh else words


def _refuse(words: str, code: int = 2) -> None:
    say(f"error: {words}")
    sys.exit(code)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe's.")
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting and where it came from, and stop.")
    ] = False,
) -> None:
    """Train, or continue, a run; started by `accelerate launch --config_file CLUSTER.yaml -m trainer train RECIPE`."""
    from trainer.config.load import flatten
    from trainer.supervise import load_run
    from trainer.text import table

    loaded = load_run(recipe, overrides or [])
    if show_config:
        rows = [(key, json.dumps(value), loaded.origins[key]) for key, value in flatten(loaded.config).items()]
        answer(table([("setting", "value", "from"), *rows], indent=""))
        return
    need_not_be_heard()
    if os.environ.get("RANK", "0") == "0":
        say("importing torch, accelerate and transformers")
    from trainer.session import run_session

    if os.environ.get("RANK", "0") == "0":
        for notice in loaded.notices:
            say(notice)
    sys.exit(run_session(loaded.config))


@app.command()
def selftest(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CLUSTER] [RECIPE] [KEY=VALUE]...")] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="What it should take; steps and kills are chosen to fit.")
    ] = 120,
    as_json: JsonOption = False,
) -> None:
    """Kill a short run of this recipe on this machine, resume it, and compare it bit for bit with one that was never killed."""
    from trainer import supervise
    from trainer.data.corpus import open_corpus
    from trainer.tools.selftest.conduct import selftest as conduct

    typed = words or []
    _, recipe, overrides = supervise.split_words(typed)
    config = supervise.load_run(recipe, overrides).config
    open_corpus(config.data, config.sequence_length)
    result = conduct(config, lambda more: supervise.plan([*typed, *more]), seconds=seconds, say=say)
    tell(json.dumps(result.facts(), indent=1) if as_json else f"\n{result.text()}")
    sys.exit(0 if result.is_exact else 1)


@app.command()
def tensorboard(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's name, or any folder of runs; all of runs/ without it."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port; the first free one from 6006 by default.")
    ] = None,
) -> None:
    """Open TensorBoard on a free port, and say how to reach it from another machine."""
    from trainer.config.folders import find_run
    from trainer.files import project_folder
    from trainer.tensorboard import board, show

    if run is None:
        folder = project_folder() / "runs"
    else:
        folder = Path(run) if Path(run).is_dir() else find_run(run)
    opened = board(folder, port, os.environ)
    say(opened.told)
    show(opened)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="A B [...]", help="Runs by name, or their folders in runs/; all are compared with A."),
    ],
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with plots here as well: a file, or a folder for compare-A-B.html."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether runs are as good as the first, and how sure that is: losses by tokens and by time, speed, what differs."""
    from trainer.tools.compare.judge import judge
    from trainer.tools.compare.runs import read_runs
    from trainer.tools.compare.show import text, to_json

    comparison = judge(read_runs(runs))
    answer(to_json(comparison) if as_json else text(comparison))
    if html:
        from trainer.tools.compare.page import write_page

        (say if as_json else tell)(f"\nplots: {write_page(comparison, html)}")


@app.command()
def settings() -> None:
    """Print every setting with its default and its meaning, as the table that stands in the README."""
    from trainer.config.settings import settings_table

    answer(settings_table())


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(help="txt, md, rst, jsonl, parquet (also .gz, .zst), folders, patterns, or hf:NAME[:CONFIG]."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write shards and manifest.json into.")],
    tokenizer: Annotated[str, typer.Option(help="gpt2, shakespeare, bytes, or a .tiktoken file.")] = "gpt2",
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
    from trainer.text import count, duration

    report = prepare_corpus(
        sources,
        out,
        tokenizer,
        text_key=text_key,
        validation_fraction=validation_fraction,
        validation_sources=validation or (),
        suffixes=suffixes(suffix or ()),
        skip_unreadable=skip_unreadable,
        num_workers=workers,
        progress=_show_progress,
    )
    found = "was there already" if report.reused else f"written in {duration(report.seconds)}"
    tell(
        f"\r{out} {found}: {count(report.train_tokens)} tokens to train on ({report.train_documents:,} documents), "
        f"{count(report.validation_tokens)} held out ({report.validation_documents:,}, "
        f"{report.validation_tokens / (report.train_tokens + report.validation_tokens):.2%}), {report.bytes_per_token:.2f} bytes a token"
    )
    for words in report.repeats:
        say(words)
    # From the project's folder, where data.corpus is meant from, `out` may be another place.
    tell(
        f"Train on it with {shlex.quote(f'data.corpus={out.resolve()}')} on the command line, or {out.resolve()} as data.corpus of a recipe."
    )


def _show_progress(documents: int, tokens: int) -> None:
    from trainer.text import count

    say(f"\r{count(documents)} documents, {f'{count(tokens)} tokens' if tokens else 'measured'} ", end="")


@app.command()
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


@app.command()
def finish(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder in runs/.")],
) -> None:
    """Declare a stopped run finished where it stands: its newest sound checkpoint becomes the final one, and is exported."""
    from trainer.finish import finish as finish_run

    tell(finish_run(run).text())


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="The text to continue; may be given several times. -, or none beside a pipe: standard input."
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Prompts: one a line, or objects with a field prompt in a .jsonl file.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    num_samples: Annotated[int, typer.Option(min=1, help="Texts for each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, max=1e6, help="0 takes the likeliest token every time.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest; 0: among all.")] = 50,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Choose among the likeliest that hold this share.")
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Choose among those with this share of the likeliest one's probability."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="The text ends before this; may be given several times.")
    ] = None,
    rows_at_once: Annotated[int, typer.Option(min=1, help="Texts that are computed together.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one object a text.")] = False,
) -> None:
    """Let a checkpoint continue texts, shown as they come."""
    from trainer.checkpoint.resume.select import locate
    from trainer.config.folders import find_checkpoints
    from trainer.evaluation.prompts import gather_prompts

    prompts = gather_prompts(prompt or [], prompts_file, sys.stdin)
    located = locate(find_checkpoints(run), checkpoint)
    say(located.words)
    from trainer.evaluation.generate import Sampling
    from trainer.evaluation.texts import Text, TextPrinter, continue_texts, exit_code, summary
    from trainer.export import open_model

    trained = open_model(located.path)
    texts = [Text(words, number) for words in prompts for number in range(num_samples)]
    printer, started = TextPrinter(texts, sys.stdout, as_json=as_json, facts=located.facts()), time.perf_counter()
    continue_texts(
        trained.model,
        trained.tokenizer,
        texts,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p),
        seed=seed,
        max_new_tokens=max_new_tokens,
        sequence_length=trained.sequence_length,
        vocab_size=trained.vocab_size,
        stops=stop or (),
        rows_at_once=rows_at_once,
        show=printer.show,
        close=printer.close,
    )
    say(summary(texts, time.perf_counter() - started, trained.sequence_length))
    sys.exit(exit_code(texts))


@app.command(name="eval")
def evaluate_command(
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
    """Take the validation loss of a checkpoint, in nats a token and bits a byte; with --tasks put tasks to it, with their accuracies."""
    from trainer.evaluate import Asked, evaluate

    def show_progress(task: str, fraction: float) -> None:
        if fraction == 1 or sys.stderr.isatty():
            say(f"\r{task} {fraction:.0%} ", end="\n" if fraction == 1 else "")

    names = None if tasks is None else [name for words in tasks for name in words.split(",") if name]
    evaluation = evaluate(run, checkpoint, Asked(tasks=names, data=data, limit=limit), show_progress)
    if evaluation.is_main:
        answer(json.dumps(evaluation.records(), indent=1) if as_json else evaluation.text())
