"""Starts a module of this very package, whatever folder one stands in and whatever PYTHONPATH holds:

    python -P /path/to/trainer/start.py trainer.checkpoint.save.writer ARGUMENTS

`python -m trainer.x` runs the first package of that name on sys.path, and that may be the current folder's or PYTHONPATH's. Here the
package that this file lies in is put under its name before anything is looked up; `-P`, or PYTHONSAFEPATH for those that others start,
keeps the current folder off sys.path. PYTHONPATH stays in force: a person's own packages may come by it.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of this package."""

SCRIPT = str(PACKAGE / "start.py")
"""This file, for those who start Python themselves, as `accelerate launch` does: SCRIPT, a module, its arguments."""

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""What the environment of such a one must have: it gives no -P."""


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package by its full name, or the package itself: `trainer` is the command line."""
    return [sys.executable, "-P", SCRIPT, module, *arguments]


def installed_package() -> Path | None:
    """The folder of the package that is installed for this interpreter, also as editable; None where none is."""
    import json
    import site
    from importlib.metadata import Distribution
    from urllib.parse import unquote, urlsplit

    places = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    for found in Distribution.discover(name="accelerate-trainer", path=places):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            root = Path(unquote(urlsplit(origin["url"]).path))
        else:
            root = Path(str(found.locate_file("")))
        return (root / PACKAGE.name).resolve()
    return None


def _put_in_place() -> None:
    """Makes this folder's package the one that is imported as `trainer`."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != PACKAGE]  # where no -P was given
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE.name]:
        del sys.modules[name]  # what a sitecustomize may have imported
    spec = importlib.util.spec_from_file_location(
        PACKAGE.name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE.name] = package
    spec.loader.exec_module(package)


if __name__ in ("__main__", "__mp_main__"):  # the second in a process that multiprocessing spawned from the first
    _put_in_place()

if __name__ == "__main__":
    _module = sys.argv.pop(1)
    runpy.run_module(_module, run_name="__main__")
