"""The words of a launch, `[CLUSTER] [RECIPE] [key=value ...]`, told apart."""

from collections.abc import Sequence
from pathlib import Path

from trainer.config import cluster as clusters
from trainer.config.folders import command_line
from trainer.config.load import recipe_names
from trainer.config.settings import settings_help
from trainer.errors import ConfigError
from trainer.text import did_you_mean


def split_words(words: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """`[CLUSTER] [RECIPE] [key=value ...]` taken apart: the cluster file (None: the one that fits), the recipe, the overrides."""
    overrides = [word for word in words if is_override(word)]
    names = [word for word in words if not is_override(word)]
    if len(names) > 2:
        form = f"{command_line()} [CLUSTER] [RECIPE] [key=value ...]"
        raise ConfigError(f"too many names: {' '.join(names)}; the form is: {form}")
    if len(names) == 1 and _is_recipe(names[0]):
        names.insert(0, "")
    if len(names) == 2 and _is_cluster(names[1]) and not _is_cluster(names[0]):
        raise ConfigError(
            f"did you swap them? {names[1]} is a cluster file, and comes before the recipe: {command_line(names[1], names[0], *overrides)}"
        )
    cluster, recipe = (*names, "", "")[:2]
    return cluster or None, recipe or "shakespeare", overrides


def is_override(word: str) -> bool:
    """Whether a word is `key=value`, and not the path of a file in whose name or folders an = stands, as `sweep/lr=3e-4/mine.yaml`."""
    key, equals, _ = word.partition("=")
    is_yaml, is_file = word.endswith((".yaml", ".yml")), Path(word).is_file()
    if "/" in key:
        is_path = is_yaml or is_file
    else:
        is_path = is_yaml and is_file and key not in {name for name, _, _ in settings_help()}
    return bool(equals) and not is_path


def _is_recipe(name: str) -> bool:
    """Whether a single name means a recipe; a YAML file is a cluster file when it says `distributed_type`."""
    if name in clusters.cluster_names():
        return False
    if name.endswith((".yaml", ".yml")):
        return not _is_cluster(name)
    if name in recipe_names():
        return True
    hint = did_you_mean(name, [*clusters.cluster_names(), *recipe_names()])
    raise ConfigError(f"{name!r} is neither a cluster file nor a recipe; {hint} (or give the path of a YAML file)")


def _is_cluster(name: str) -> bool:
    """Whether a name is that of a cluster file: a shipped one, or a YAML file that says `distributed_type`."""
    is_file = name.endswith((".yaml", ".yml")) and Path(name).is_file()
    if not is_file:
        return name in clusters.cluster_names()
    return "distributed_type" in Path(name).read_text(encoding="utf-8", errors="replace")
