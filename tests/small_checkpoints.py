"""Checkpoints of a few bytes, committed by the real store: what the tests of checkpoint/ work on."""

from dataclasses import replace
from pathlib import Path

import xxhash

from trainer.checkpoint.format.manifest import MANIFEST, Manifest, describe_files, read_manifest, to_json
from trainer.checkpoint.format.store import CheckpointStore

NAMES = ("model.safetensors", "optimizer.bin", "random_states_0.json", "config.yaml")

CONFIG = """\
name: run
max_steps: 100
global_batch: 4
micro_batch: 2
sequence_length: 8
data: {corpus: shakespeare}
model: {preset: llama-shakespeare}
checkpoint: {keep_last: 2, keep_best: 1}
"""


def manifest_of(step: int, *, files: dict | None = None, **facts) -> Manifest:
    """A manifest of `step` with plausible facts."""
    usual = {
        "sequences": step * 4,
        "tokens": step * 32,
        "reason": "periodic",
        "created": "2026-01-01T00:00:00+00:00",
        "loss": 2.5,
        "state": {"version": 1, "progress": {"step": step}},
    }
    return Manifest(step=step, files=files or {}, **{**usual, **facts})


def write_files(folder: Path, step: int) -> None:
    """Files of the same names and sizes at every step, with other bytes."""
    for name in NAMES:
        content = CONFIG if name == "config.yaml" else f"{name} of step {step:08d}\n" * 3
        (folder / name).write_text(content, encoding="utf-8")


def commit(store: CheckpointStore, step: int, **facts) -> Path:
    """Stages and commits one checkpoint; returns its folder."""
    staging = store.begin(step)
    write_files(staging, step)
    return store.commit(staging, manifest_of(step, files=describe_files(staging), **facts))


def flip(path: Path, position: int = 0, bits: int = 0xFF) -> None:
    """Changes one byte of a file in place."""
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(bytes(content))


def lead_out(checkpoint: Path, name: str) -> None:
    """Gives a checkpoint's manifest, whose digest stays right, a file of another name; where that leads there is a file like it."""
    manifest = read_manifest(checkpoint)
    entry = {"bytes": 7, "xxh3_128": xxhash.xxh3_128_hexdigest(b"outside")}
    (checkpoint / "inner").mkdir(exist_ok=True)
    if name:
        (checkpoint / name).write_bytes(b"outside")
    (checkpoint / MANIFEST).write_text(to_json(replace(manifest, files={**manifest.files, name: entry})))


OUTSIDE = ["../escaped", "inner/../../escaped", "a\\b", ""]
"""Names of files that are not inside a checkpoint's folder, or not on every system."""
