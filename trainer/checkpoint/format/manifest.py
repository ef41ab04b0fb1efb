"""What a checkpoint says of itself: plain JSON beside the files, with a digest of every one of them.

The manifest is written last, so a folder with a sound manifest had all its files; it carries its own digest, so a flipped byte in it
is found as well. It also holds the state object's values, so that resuming never unpickles them.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any

import xxhash

from trainer.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
_BLOCK_BYTES = 8 << 20

UNSPECIFIC = ("transformers_version", "_name_or_path", "architectures", "dtype", "use_cache", "max_position_embeddings")
"""Fields of a transformers config that may differ between two configs of one model."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint, described."""

    step: int
    sequences: int
    tokens: int
    reason: str
    """Why it was made: `periodic`, `best`, `interrupt` or `final`."""
    created: str
    """When, as ISO 8601 in UTC; for people, never compared."""
    loss: float | None = None
    """Training loss of the last step before it, nats per token."""
    validation: str | None = None
    """Fingerprint of what val_loss was taken on: only equals compare."""
    val_loss: float | None = None
    """Validation loss at exactly this step, nats per token; None when it was not evaluated here."""
    last_val_loss: float | None = None
    """The last validation loss up to this step, for people: `best` compares `val_loss` only. None before the first."""
    last_val_step: int | None = None
    """The step of that one."""
    world_size: int = 1
    precision: str = "no"
    """What its run computed in by then: no, bf16, fp16, fp8 or fp8 emulation."""
    precision_facts: dict[str, Any] = field(default_factory=dict)
    """What was asked, why it became that, the recipe of fp8 and the share of the arithmetic in it."""
    epoch: int | None = None
    """The epoch at whose end it was made, counted from 1; None for one made within an epoch."""
    pinned: bool = False
    """Whether a person wants it kept, whatever the tiers say."""
    origin: str | None = None
    """The step, path or `best` that its run was last taken back to on purpose; None when it never was."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What must match for a resume: see changes.py."""
    model: dict[str, Any] = field(default_factory=dict)
    """The transformers config, as a dict."""
    frozen: list[str] = field(default_factory=list)
    """Names of the parameters that its run did not train, as `optimizer.groups` asked."""
    tokenizer: str | None = None
    """The tokenizer's name, or the path of its `.tiktoken` file; its fingerprint stands in `identity`."""
    vocab_size: int = 0
    """Number of real token ids, without the padding of the embedding."""
    initial: dict[str, Any] = field(default_factory=dict)
    """Where its weights began (see run/initial.py); empty for random weights."""
    branch_of: str | None = None
    """The run, and its step, that its run is a branch of; None where it is none."""
    state: dict[str, Any] = field(default_factory=dict)
    """The registered TrainState's values."""
    versions: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    """What it was computed on and how, beside the precision, by name; what does not apply is None."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File name -> {"bytes", "xxh3_128"}."""
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.files.values())

    @property
    def val_loss_words(self) -> str | None:
        """The last validation loss, with its step where that is another: `3.4102` or `3.4102 at 300`; None before the first."""
        if self.val_loss is not None:
            return f"{self.val_loss:.4f}"
        return None if self.last_val_loss is None else f"{self.last_val_loss:.4f} at {self.last_val_step}"

    @property
    def began_from(self) -> str | None:
        """Where its weights began, with their digest, for people; None for random weights."""
        return f"{self.initial['source']} (weights {self.initial['digest']})" if self.initial else None

    @property
    def content_digest(self) -> str:
        """Digest of what its files should be, which no pin changes: what a verification is remembered by."""
        return _digest({"step": self.step, "files": self.files})


@dataclass(frozen=True)
class Description:
    """What a manifest says beside the files: facts of the run that do not change while it runs, and how to ask for the one that may."""

    identity: dict[str, Any]
    model: dict[str, Any]
    """The resolved transformers config."""
    tokenizer: str | None
    vocab_size: int
    precision: str
    versions: dict[str, str]
    config_text: str
    initial: dict[str, Any] = field(default_factory=dict)
    """Where its weights began; empty for random weights."""
    branch_of: str | None = None
    validation: str | None = None
    """Fingerprint of the held-out data."""
    precision_facts: Callable[[], dict[str, Any]] = dict
    """What the run computes in just now, as plain values, asked for each manifest; its `label` goes before `precision`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By dotted name."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What it computes on and how, by name, as plain values: the device, whether blocks are compiled."""
    frozen: list[str] = field(default_factory=list)
    """Names of the parameters that `optimizer.groups` freezes."""
    allowed_changes: tuple[str, ...] = ()
    """Names of what may be another than it was in the checkpoint: see changes.py."""
    training_data_at: Callable[[int], str] | None = None
    """The fingerprint that these training data have when they are cut into sequences of another length."""

    @property
    def precision_now(self) -> str:
        return self.precision_facts().get("label", self.precision)


def folder_name(step: int) -> str:
    """The name of a committed checkpoint's folder."""
    return f"step-{step:08d}"


def digest_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, 32 hexadecimal digits (about ten times as fast as SHA-256; it guards against accidents)."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def manifest_digest(folder: Path) -> str:
    """xxh3-128 of a checkpoint's manifest.json: what the journal knows a checkpoint by."""
    return digest_file(folder / MANIFEST)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of a checkpoint but the manifest, by its path inside the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": digest_file(path)}
        for path in paths
    }


def to_json(manifest: Manifest) -> str:
    """The manifest as text, with the digest of its own content; a loss that is not finite is not a number there."""
    losses = {"loss": manifest.loss, "val_loss": manifest.val_loss}
    finite = {name: loss if math.isfinite(loss or 0.0) else None for name, loss in losses.items()}
    content = json.loads(json.dumps({**asdict(manifest), **finite}))  # as a reader sees it: the digest must be the same
    return json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks a checkpoint's manifest; CheckpointError says why it cannot be believed."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never committed, or the file was removed") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): the file is damaged") from None
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, path: str) -> Manifest:
    """A manifest from its file's bytes, checked; `path` is where they come from, for the CheckpointError."""
    try:
        content = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): the file is damaged") from None
    if not isinstance(content, dict) or content.pop("digest", None) != _digest(content):
        raise CheckpointError(f"{path} does not match its own digest: the file is damaged")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')}, and this trainer reads format {FORMAT}; use the version that wrote it"
        )
    stated = {*content, *_REQUIRED}
    if wrong := next((key for key, is_right in _FORMS.items() if key in stated and not is_right(content.get(key))), ""):
        raise CheckpointError(
            f"{path} states no {wrong} that this trainer writes ({str(content.get(wrong))[:60]}): somebody has changed it"
        )
    known = {entry.name for entry in fields(Manifest)}
    of_state = last_evaluation(content.get("state") or {})  # earlier versions stated it there only
    return Manifest(**{**of_state, **{key: value for key, value in content.items() if key in known}})


def _of(*types: type) -> Callable[[Any], bool]:
    """Whether a value of JSON is of one of these types, of which none is another's: true is no whole number."""
    return lambda value: type(value) in types


def _is_moment(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value) is not None
    except (TypeError, ValueError):
        return False


def _are_files(value: Any) -> bool:
    entries = value.values() if isinstance(value, dict) else [None]
    is_file = [isinstance(e, dict) and type(e.get("bytes")) is int and type(e.get("xxh3_128")) is str for e in entries]
    return all(is_file)


def _is_state(value: Any) -> bool:
    parts = ("progress", "guard", "evaluation")
    return isinstance(value, dict) and all(isinstance(value.get(part, {}), dict) for part in parts)


_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "sequences", "tokens", "world_size", "vocab_size"), _of(int)),
    **dict.fromkeys(("epoch", "last_val_step"), _of(int, NoneType)),
    **dict.fromkeys(("loss", "val_loss", "last_val_loss"), _of(int, float, NoneType)),
    **dict.fromkeys(("reason", "precision"), _of(str)),
    **dict.fromkeys(("precision_facts", "identity", "model", "initial", "versions", "conditions"), _of(dict)),
    "created": _is_moment,
    "files": _are_files,
    "frozen": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "state": _is_state,
}
"""What each field has to be, by its name: a right digest says that nothing was damaged, and not who wrote it."""

_REQUIRED = ("step", "sequences", "tokens", "reason", "created")
"""What every version has stated; what else is not stated is what it is by default."""


def last_evaluation(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a TrainState's values say of the last validation loss, as fields of a manifest; empty before the first."""
    found = state.get("evaluation") or {}
    stated = found.get("last_loss") is not None
    return {"last_val_loss": found["last_loss"], "last_val_step": found["last_step"]} if stated else {}


def _digest(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
