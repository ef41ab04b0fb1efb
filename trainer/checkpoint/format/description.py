"""What a run says of itself: for the manifests of its checkpoints, and to be compared with the one that it goes on from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
    validation: str | None = None
    """Fingerprint of the held-out data."""
    precision_facts: Callable[[], dict[str, Any]] = dict
    """What the run computes in just now, as plain values, asked for each manifest; its `label` goes before `precision`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By dotted name."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What it computes on and how, by name, as plain values: the device, whether blocks are compiled."""
    allowed_changes: tuple[str, ...] = ()
    """Names of what may be another than it was in the checkpoint: see changes.py."""
    training_data_at: Callable[[int], str] | None = None
    """The fingerprint that these training data have when they are cut into sequences of another length."""

    @property
    def precision_now(self) -> str:
        return self.precision_facts().get("label", self.precision)
