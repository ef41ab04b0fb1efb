"""Packages of a person's own that register architectures with transformers' AutoConfig and AutoModelForCausalLM: `plugins: [my_package]`.

They are installed beside the trainer, imported in every process that builds a model, and known by version and digest of their code.
"""

import importlib
import importlib.util
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

import xxhash

from trainer.errors import ConfigError
from trainer.text import one_line

_PLUGIN = "plugin "
"""Begins the name of a plugin among the versions that a run depends on."""


def is_plugin(name: str) -> bool:
    """Whether a name among the versions of a run is a plugin's."""
    return name.startswith(_PLUGIN)


def check_plugins(names: Iterable[str]) -> None:
    """Refuses a package that is not there, without importing any; raises ConfigError."""
    for name in names:
        _code_of(name)


def import_plugins(names: Iterable[str]) -> None:
    """Imports these packages, each once in a process; raises ConfigError for one that is not there, or whose import fails."""
    for name in names:
        _code_of(name)
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a person's own code raises
            raise ConfigError(
                f"plugins: {name} cannot be imported ({one_line(error)}); fix the package: `python -c 'import {name}'` shows where it fails"
            ) from error


def plugin_versions(names: Iterable[str]) -> dict[str, str]:
    """Version and digest of each package by `plugin NAME`: `1.0 (3f2a90bc)`; without a version where nothing was installed under it."""
    return {f"{_PLUGIN}{name}": _version(name, digest_of_code(_code_of(name))) for name in names}


def digest_of_code(files: Iterable[Path]) -> str:
    """Stands for what is in these files of Python, wherever they lie; 8 hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for path in sorted(files):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:8]


def _version(name: str, digest: str) -> str:
    distributions = packages_distributions().get(name.partition(".")[0], [])
    return f"{version(distributions[0])} ({digest})" if distributions else f"({digest})"


def _code_of(name: str) -> list[Path]:
    """The files of Python that make up a package, or the one of a module; ConfigError where there is none of this name."""
    package = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(
            f"plugins: {name} is not there: this Python finds no package {package!r}. Install it beside the trainer "
            "(pip install ./FOLDER), put the folder that holds it into PYTHONPATH, or mend its name in the recipe"
        )
    if spec.submodule_search_locations is not None:
        return [path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py")]
    return [Path(spec.origin)] if spec.origin and spec.has_location else []
