"""A branch of a run: a new run that begins at one of its checkpoints with other settings, and leaves the run itself as it is.

The checkpoint is copied whole and verified, so nothing that is pruned, damaged or trained there later touches the branch. What is typed counts
as an allowed change. The branch has its own recipe in runs/NAME, and is trained as any other run; its journal, manifests and TensorBoard say
what it is a branch of.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format.manifest import manifest_digest
from trainer.checkpoint.mirror.duplicate import duplicate
from trainer.checkpoint.resume.lookup import one_of
from trainer.config.folders import check_can_be_made, checkpoints_folder, command_line, find_checkpoints, run_folder
from trainer.config.load import dump, flatten, load
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.journal import Journal

RECIPE = "recipe.yaml"
"""In runs/NAME: what a branch is trained by."""

_BY_SETTING = {"optimizer.name": "optimizer", "sequence_length": "sequence_length", "seed": "seed"}


def fork(run: str, wanted: str, name: str, overrides: Sequence[str]) -> str:
    """Makes a branch; says what it is and how to train it.

    run        its name, or its folder
    wanted     `latest`, `best`, a step or a path: the checkpoint
    overrides  `key=value` words over the settings that the checkpoint was made with
    raises     TrainerError when there is no such checkpoint, it is damaged, the name is taken or a setting is wrong; nothing is left behind
    """
    source = find_checkpoints(run)
    entry = one_of(source, wanted)
    config = _config(entry.path, name, overrides)
    folder, checkpoints = run_folder(config), checkpoints_folder(config)
    for setting, place in (("runs_folder", folder), ("checkpoints_folder", checkpoints)):
        if place.exists():
            raise ConfigError(f"{place} exists already, and a branch begins anew; give it another name: --name")
        check_can_be_made(setting, place)
    step, of = entry.described().step, source.name
    try:
        folder.mkdir(parents=True)  # from here on the name is this branch's, and what is there is its own
    except FileExistsError:
        raise ConfigError(f"{folder} has just been made by somebody else; give it another name: --name") from None
    try:
        copied = duplicate(source, str(entry.path), checkpoints)  # `latest` may be another one by now
        Journal(folder).write(
            "fork",
            run=of,
            step=step,
            checkpoint=str(entry.path),
            digest=manifest_digest(entry.path),
            changed=list(overrides),
        )
        files.write_atomic(folder / RECIPE, dump(config))
    except BaseException:
        for place in (folder, checkpoints):
            if place.exists():
                files.remove_folder(place)
        raise
    train = command_line("[CLUSTER]", str(folder / RECIPE)).replace("'[CLUSTER]'", "[CLUSTER]")
    return f"{copied}\n{name} is a branch of {of} at step {step}; train it with: {train}"


def _config(checkpoint: Path, name: str, overrides: Sequence[str]) -> Config:
    """The settings of a branch: those of its checkpoint, with what was typed, which may change. raises ConfigError"""
    kept = checkpoint / "config.yaml"
    if not kept.is_file():
        raise ConfigError(
            f"{checkpoint} has no config.yaml, so its settings are not known; give a recipe to a new run, with resume_from_checkpoint=PATH"
        )
    before, own = load(str(kept)).config, [f"name={name}", "resume_from_checkpoint=latest"]
    config = load(str(kept), [*overrides, *own]).config
    was = flatten(before)  # a whole section may have been typed, so what changed is asked of the settings
    changed = [key for key, value in flatten(config).items() if value != was[key]]
    given = (*before.resume.allow_changes, *config.resume.allow_changes)
    allowed = dict.fromkeys((*given, *_allowed(changed, was, flatten(config))))
    return load(str(kept), [*overrides, *own, f"resume.allow_changes=[{', '.join(allowed)}]"]).config


def _allowed(changed: Iterable[str], was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What resume.allow_changes must name for these changes of settings to be such that a resume takes."""
    found: list[str] = []
    for key in changed:
        if key.startswith("data."):
            found += ["data", "tokenizer"]
        elif key == "model.config":
            before, after = was[key] or {}, now[key] or {}
            names = dict.fromkeys((*before, *after))
            found += [f"model.{name}" for name in names if before.get(name) != after.get(name)]
        elif key in _BY_SETTING:
            found.append(_BY_SETTING[key])
    return found
