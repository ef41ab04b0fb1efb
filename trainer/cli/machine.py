"""The commands about this machine: `doctor` and `install-fp8` (precisions), `selftest` (exact resumes), `bench` (speed); and `plan`, about any."""

import json
import shutil
import sys
from typing import Annotated

import typer

from trainer.cli.options import JsonOption, LaunchArgument
from trainer.streams import answer, say, tell

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine what a run would be like.")


def plan(
    words: LaunchArgument = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="What it would run on, e.g. H100; by default what is here.")
    ] = None,
    mfu: Annotated[float | None, typer.Option(min=0.001, max=1.0, help="The share of the peak to reckon with.")] = None,
    like: Annotated[
        str | None, typer.Option(metavar="RUN", help="Reckon with the share of the peak that this run has here.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of one GPU for an hour, in any currency.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Build the model on the meta device and count that; takes some seconds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a run would take, before anything starts: parameters, memory by part, days, checkpoints, cost, what would make it fit."""
    from trainer import launcher
    from trainer.tools.plan.measured import pace_of
    from trainer.tools.plan.plan import Asked, plan_of
    from trainer.tools.plan.show import facts, text

    wanted = launcher.read_words(words or [])
    asked = Asked(gpu=gpu, mfu=mfu, price=price, exact=exact, pace=pace_of(like) if like else None)
    found = plan_of(wanted.loaded.config, wanted.cluster, asked, say)
    answer(json.dumps(facts(found), indent=1) if as_json else text(found, shutil.get_terminal_size((100, 24)).columns))


def doctor(words: LaunchArgument = None, as_json: JsonOption = False) -> None:
    """Say which precisions this machine can compute in, and why; with a launch's words, what it would take (exit code 1: not as asked)."""
    from dataclasses import replace

    from trainer import launcher
    from trainer.tools.doctor.diagnosis import diagnose, foresee
    from trainer.tools.doctor.show import text

    launch = None
    if words:
        wanted = launcher.read_words(words)
        launch = foresee(wanted.cluster, wanted.recipe, wanted.overrides, wanted.loaded.config, wanted.environment)
    diagnosis = replace(diagnose(), launch=launch)
    tell(json.dumps(diagnosis.as_json(), indent=1) if as_json else text(diagnosis))
    sys.exit(diagnosis.exit_code)


def install_fp8() -> None:
    """Install TransformerEngine into this environment; what ./launch.sh --setup fp8 calls."""
    from trainer.errors import PrecisionError
    from trainer.tools.doctor.install import install

    if failure := install(say, again=True):
        raise PrecisionError(f"{failure}; fix that, and start again")


def selftest(
    words: LaunchArgument = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="What it should take; steps and kills are chosen to fit.")
    ] = 120,
    as_json: JsonOption = False,
) -> None:
    """Kill a short run of this recipe on this machine, resume it, and compare it bit for bit with one that was never killed."""
    from trainer import launcher
    from trainer.data.corpus import open_corpus
    from trainer.tools.selftest.conduct import selftest as conduct

    typed = words or []
    _, recipe, overrides = launcher.split_words(typed)
    config = launcher.load_run(recipe, overrides).config
    open_corpus(config.data, config.sequence_length)
    result = conduct(config, lambda more: launcher.check_launch([*typed, *more]), seconds=seconds, say=say)
    tell(json.dumps(result.facts(), indent=1) if as_json else f"\n{result.text()}")
    sys.exit(0 if result.is_exact else 1)


@bench_app.command()
def precision(
    words: LaunchArgument = None,
    steps: Annotated[
        int, typer.Option(min=1, help="How many are timed in each launch; every variant is launched twice.")
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """Time this recipe in bf16, compiled and not, and in each fp8 recipe that this machine has; say which to take, if any."""
    from trainer import launcher
    from trainer.config.cluster import fitting_cluster, read_cluster
    from trainer.data.corpus import open_corpus
    from trainer.tools.bench.conduct import bench as conduct
    from trainer.tools.bench.survey import survey

    cluster_name, recipe, overrides = launcher.split_words(words or [])
    config = launcher.load_run(recipe, overrides).config
    open_corpus(config.data, config.sequence_length)
    result = conduct(
        config,
        read_cluster(cluster_name or fitting_cluster()),
        lambda cluster_file, more: launcher.check_launch([str(cluster_file), recipe, *overrides, *more]),
        steps=steps,
        survey=survey,
        say=say,
    )
    tell(json.dumps(result.facts(), indent=1) if as_json else f"\n{result.text()}")
