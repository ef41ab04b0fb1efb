"""What saving and restoring one run have in common, made once and read by both."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer.checkpoint.format.layout import FileLayout
from trainer.checkpoint.format.manifest import Description, Manifest, last_evaluation
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.whole_files import WholeFiles
from trainer.checkpoint.ranks import Ranks
from trainer.journal import Journal
from trainer.locks import Lock
from trainer.state import TrainState


@dataclass(kw_only=True)
class CheckpointContext:
    """One run as its checkpoints see it, on every rank."""

    accelerator: Accelerator
    ranks: Ranks
    model: torch.nn.Module
    """The bare module whose keys are stored."""
    optimizer: torch.optim.Optimizer
    state: TrainState
    store: CheckpointStore
    description: Description
    policy: Policy
    run_folder: Path
    metrics_file: Path
    """Must be durable up to the saved step before a checkpoint is."""
    marker: Path
    """The file that says that the run has saved."""
    layout: FileLayout = field(default_factory=WholeFiles)
    """How the state lies in files."""
    lock: Lock | None = None
    """Of the folder of checkpoints, on rank 0, once it was looked for one."""
    origin: str | None = None
    """The step, path or `best` that this run was last taken back to on purpose."""

    def __post_init__(self) -> None:
        self.journal = Journal(self.run_folder)
        self.accelerator.register_for_checkpointing(self.state)

    def manifest(self, reason: str, *, loss: float | None, val_loss: float | None, epoch: int | None) -> Manifest:
        """This moment's, but for the digests of the files. `epoch`: the one that the last step ended, counted from 1."""
        facts, state = self.description, self.state.state_dict()
        as_they_are = (
            "validation",
            "identity",
            "model",
            "tokenizer",
            "vocab_size",
            "initial",
            "versions",
            "frozen",
            "branch_of",
        )
        return Manifest(
            **asdict(self.state.progress),
            **{name: getattr(facts, name) for name in as_they_are},
            **last_evaluation(state),
            reason=reason,
            epoch=epoch,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            loss=loss,
            val_loss=val_loss,
            world_size=self.ranks.count,
            precision=facts.precision_now,
            origin=self.origin,
            state=state,
            precision_facts=facts.precision_facts(),
            conditions=dict(facts.conditions),
        )
