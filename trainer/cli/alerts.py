"""The commands of `trainer alerts`: whether those who are to be told of a run can be; without torch."""

from typing import TYPE_CHECKING, Annotated

import typer

from trainer.streams import answer, say

if TYPE_CHECKING:
    from trainer.config.load import Loaded

alerts_app = typer.Typer(no_args_is_help=True, help="See whether a run's alerts arrive.")


@alerts_app.callback()
def _group() -> None:
    """A group with one command is that command otherwise."""


@alerts_app.command()
def test(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, its folder in runs/, or a recipe.")],
) -> None:
    """Send a message to all that the run's `alerts` name, and say what came of it; exit code 1 where one did not arrive."""
    import os

    from trainer.alerts.outbox import Message
    from trainer.alerts.targets import DeliveryError, targets_of
    from trainer.errors import ConfigError

    loaded = _settings(run)
    name, alerts = loaded.config.name, loaded.config.alerts
    targets, notices = targets_of(alerts, loaded.webhook, os.environ)
    for notice in notices:
        say(notice)
    if not alerts.num_targets:
        ways = "alerts.webhook_env, alerts.webhook_file, alerts.command or alerts.mail"
        raise ConfigError(f"the alerts of {name} go to nobody; set {ways} in its recipe")
    is_well = len(targets) == alerts.num_targets
    for target in targets:
        try:
            target.send(Message(name, "test", "this is what an alert of this run looks like"))
        except DeliveryError as error:
            answer(f"{target.name}: did not arrive: {error}")
            is_well = False
        else:
            answer(f"{target.name}: delivered")
    raise typer.Exit(0 if is_well else 1)


def _settings(run: str) -> "Loaded":
    """The settings of a run that has begun, or of a recipe."""
    from pathlib import Path

    from trainer.config.folders import find_run
    from trainer.config.load import load, recipe_names

    is_recipe = run.endswith((".yaml", ".yml")) or (run in recipe_names() and not Path(run).is_dir())
    return load(run if is_recipe else str(find_run(run) / "config.yaml"))
