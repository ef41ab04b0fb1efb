"""The commands about what this machine can compute in: `trainer doctor`, and `trainer install-fp8`."""

import json
import sys
from typing import Annotated

import typer

from trainer.cli_checkpoints import JsonOption
from trainer.streams import say, tell


def doctor(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CLUSTER] [RECIPE] [KEY=VALUE]...")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can compute in, and why; with the words of a launch also what that would decide (exit code 1: not as asked)."""
    from dataclasses import replace

    from trainer import supervise
    from trainer.tools.doctor.diagnosis import diagnose, foresee
    from trainer.tools.doctor.show import text

    launch = None
    if words:
        asked = supervise.read_words(words)
        launch = foresee(asked.cluster, asked.recipe, asked.overrides, asked.loaded.config, asked.environment)
    diagnosis = replace(diagnose(), launch=launch)
    tell(json.dumps(diagnosis.as_json(), indent=1) if as_json else text(diagnosis))
    sys.exit(diagnosis.exit_code)


def install_fp8() -> None:
    """Install TransformerEngine into this environment; what ./launch.sh --setup fp8 calls."""
    from trainer.errors import PrecisionError
    from trainer.tools.doctor.install import install

    if failure := install(say, again=True):
        raise PrecisionError(f"{failure}; mend that, and start again")
