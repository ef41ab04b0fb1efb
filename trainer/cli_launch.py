"""The commands that start a run and say what came of it: `trainer launch` and `trainer report`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.streams import answer, say, tell
from trainer.text import numbered

if TYPE_CHECKING:
    from trainer.config.schema import Config


def launch(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[CLUSTER] [RECIPE] [KEY=VALUE]...")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that can be checked, show what would run, and stop.")
    ] = False,
) -> None:
    """Check a run, start it with `accelerate launch`, and report; what the words of a run mean without a command."""
    from trainer import supervise

    with supervise.stopped_early():
        from trainer.journal import Journal
        from trainer.metrics.outcome import read_outcome
        from trainer.tools.doctor.install import install_for

        if dry_run:
            from trainer.dry_run import dry_run as look

            answer(look(supervise.read_words(words or []), say))
            return
        plan = supervise.plan(words or [])
        supervise.check_data(plan.config)
        command, code = _as_typed(context, words or []), 0
        if supervise.is_finished(plan):
            tell(f"{supervise.finished_words(plan)}\n")
        else:
            install_for(plan.cluster, plan.config.precision, say)
            Journal(plan.folder).write("launch", command=command, folder=str(Path.cwd()))
            say(f"starting accelerate launch with {numbered(plan.cluster.num_processes, 'process')}")
            code = supervise.run_launch(plan)
    if code != 2 and read_outcome(plan.folder):  # a refusal has said all there is
        tell_report(plan.config, plan.folder, command)
    sys.exit(code)


def _as_typed(context: typer.Context, words: list[str]) -> str:
    """The command that starts this launch again, for a shell."""
    from trainer.config.folders import command_line

    door = context.find_root().info_name or ""
    started = Path(sys.argv[0])
    program = (
        [door if "/" in door else f"./{door}"]
        if door.endswith(".sh")
        else [str(started), "launch"]
        if started.name == "trainer"
        else None
    )
    return shlex.join([*program, *words]) if program else command_line(*words)


def tell_report(config: "Config", folder: Path, command: str) -> None:
    """Prints what came of a run that has ended; one that cannot be made is told, and takes nothing from how the run ended."""
    from trainer.text import one_line

    try:
        tell(report_of(config, folder, command))
    except Exception as error:
        say(
            f"what came of {config.name} cannot be told ({one_line(error)}); {folder / 'outcome.json'} says how it ended"
        )


def report_of(config: "Config", folder: Path, command: str = "") -> str:
    """What came of a run; `command` starts it again."""
    from trainer.config.folders import checkpoints_folder
    from trainer.data.corpus import known_baselines
    from trainer.report import report

    prompt = next(iter(config.evaluation.sample_prompts), config.evaluation.prompt)
    known = known_baselines(config.data)
    return "\n" + report(config.name, folder, checkpoints_folder(config), known, prompt=prompt, command=command)


def report_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder in runs/.")],
) -> None:
    """Say what came of a run: losses beside the baselines, a sample, and where everything lies."""
    from trainer.config.folders import find_run
    from trainer.config.load import load_resolved

    folder = find_run(run)
    answer(report_of(load_resolved(folder / "config.yaml"), folder))
