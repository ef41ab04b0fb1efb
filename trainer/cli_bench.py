"""The commands of `trainer bench`: they measure on this machine what a run would be like."""

import json
from typing import Annotated

import typer

from trainer.cli_checkpoints import JsonOption
from trainer.streams import say, tell

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine what a run would be like.")


@bench_app.command()
def precision(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CLUSTER] [RECIPE] [KEY=VALUE]...")] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="How many are timed in each launch; every variant is launched twice.")
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """Time this recipe in bf16, compiled and not, and in each fp8 recipe that this machine has; say which to take, if any."""
    from trainer import supervise
    from trainer.config.cluster import fitting_cluster, read_cluster
    from trainer.data.corpus import open_corpus
    from trainer.tools.bench.conduct import bench as conduct
    from trainer.tools.bench.survey import survey

    cluster_name, recipe, overrides = supervise.split_words(words or [])
    config = supervise.load_run(recipe, overrides).config
    open_corpus(config.data, config.sequence_length)
    result = conduct(
        config,
        read_cluster(cluster_name or fitting_cluster()),
        lambda cluster_file, more: supervise.plan([str(cluster_file), recipe, *overrides, *more]),
        steps=steps,
        survey=survey,
        say=say,
    )
    tell(json.dumps(result.facts(), indent=1) if as_json else f"\n{result.text()}")
