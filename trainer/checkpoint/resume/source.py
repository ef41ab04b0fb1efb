"""What `model.init_from` names: a folder of transformers, a model of the hub, or a checkpoint of this trainer."""

import os
from pathlib import Path

from trainer import files, hub
from trainer.checkpoint.format.manifest import MANIFEST, digest_file, read_manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume.lookup import one_of
from trainer.config.folders import find_checkpoints
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.model_files import WEIGHTS
from trainer.pretrained import Source, open_source, read_config

RUN = "run:"


def find_source(init_from: str, *, weights: bool = True) -> Source:
    """The source that model.init_from means: looked at, and not read. raises TrainerError with what is wrong and what to do

    weights  whether those of a model of the hub must be here; otherwise they need not be downloaded yet, and their types are not known
    """
    if init_from.startswith(RUN):
        return _of_run(init_from)
    if hub.is_hub_name(init_from) and not weights:
        looked_at = hub.look_at_model(init_from)
        fields = read_config(looked_at.path, init_from)
        return Source(looked_at.at_commit, looked_at.path, fields, revision=looked_at.revision)
    if hub.is_hub_name(init_from):
        resolved = hub.resolve(init_from, weights=True)
        return open_source(resolved.path, resolved.at_commit, resolved.revision)
    folder = files.project_folder() / os.path.expanduser(init_from)
    if (folder / MANIFEST).is_file() and not (folder / "config.json").is_file():
        entry = CheckpointStore(folder.parent).entry(folder)
        return _of_checkpoint(folder, init_from, entry.problem)
    return open_source(folder, init_from)


def check_bytes(source: Source) -> None:
    """Reads the weights of a checkpoint of this trainer, and compares them with their digest. raises ConfigError"""
    if not source.is_checkpoint:
        return
    expected = read_manifest(source.folder).files[WEIGHTS]["xxh3_128"]
    if digest_file(source.folder / WEIGHTS) != expected:
        raise ConfigError(
            f"model.init_from {source.name}: {source.folder / WEIGHTS} is damaged: its bytes do not match their digest; restore it from a copy, "
            "or name another step: run:NAME@STEP"
        )


def _of_run(init_from: str) -> Source:
    name, _, wanted = init_from.removeprefix(RUN).partition("@")
    if not name:
        raise ConfigError(f"model.init_from {init_from!r} names no run; write run:NAME, or run:NAME@STEP")
    try:
        entry = one_of(find_checkpoints(name), wanted or "latest")
    except TrainerError as error:
        raise ConfigError(f"model.init_from {init_from}: {error}") from None
    return _of_checkpoint(entry.path, f"{RUN}{name}@{entry.step}", entry.problem)


def _of_checkpoint(folder: Path, name: str, problem: str | None) -> Source:
    if problem:
        raise ConfigError(
            f"model.init_from {name}: {folder} is not whole ({problem}); restore it from a copy, or name another step: run:NAME@STEP"
        )
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        raise ConfigError(f"model.init_from {name}: {error}") from None
    before = manifest.initial
    return Source(
        name,
        folder,
        manifest.model,
        dtype=before.get("dtype", "float32"),
        dtypes=before.get("dtypes", {}),
        vocab_size=manifest.vocab_size,
    )
