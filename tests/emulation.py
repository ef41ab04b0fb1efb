"""Puts the stand-in for TransformerEngine (tests/stand_in) on the path of a process, as if it were installed."""

import importlib
import sys
from types import ModuleType

from tests.launching import PROJECT, Started

STAND_IN = str(PROJECT / "tests" / "stand_in")


_real: dict[str, ModuleType] = {}
"""TransformerEngine itself, where it is installed and was imported, while the stand-in takes its place."""


def install() -> None:
    """Makes `import transformer_engine` find the stand-in, in this process."""
    if STAND_IN not in sys.path:
        _real.update(_take_away())
        sys.path.insert(0, STAND_IN)
        importlib.invalidate_caches()


def uninstall() -> None:
    """Takes it away again, with everything that was imported from it."""
    sys.path[:] = [place for place in sys.path if place != STAND_IN]
    _take_away()
    sys.modules.update(_real)
    _real.clear()
    importlib.invalidate_caches()


def _take_away() -> dict[str, ModuleType]:
    """Whatever is imported under TransformerEngine's name, no longer imported."""
    from trainer.precision import backend, layers

    backend.load.cache_clear()
    layers.fp8_classes.cache_clear()
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "transformer_engine"}


def train(recipe, *overrides, precision="fp8", num_processes=1, exit_code=0, before=install) -> str:
    """Runs to the end with a cluster file that asks for this precision; `before` is called in every rank first. Returns what was printed."""
    run = start(recipe, *overrides, precision=precision, num_processes=num_processes, before=before)
    code = run.wait()
    assert code == exit_code, f"exit code {code}\n{run.text()}"
    return run.text()


def start(recipe, *overrides, precision="fp8", num_processes=1, before=install) -> Started:
    """Starts such a run."""
    return Started(recipe, overrides, num_processes, before, environment={"ACCELERATE_MIXED_PRECISION": precision})
