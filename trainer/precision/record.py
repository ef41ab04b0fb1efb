"""What records, logs and checkpoints state of the precision of a run."""

from dataclasses import dataclass
from typing import Any

from trainer.config.schema import PrecisionConfig
from trainer.precision.audit import Coverage
from trainer.precision.decide import Decision


@dataclass(frozen=True)
class PrecisionRecord:
    """The precision at one moment of a run."""

    decision: Decision
    wanted: PrecisionConfig
    coverage: Coverage | None = None
    """What is in fp8 where fp8 was decided."""
    made: Any = None
    """TransformerEngine's recipe object, likewise."""
    in_fp8: bool = False
    """Whether the layers that were converted compute in fp8 now."""
    last_fp8_step: int | None = None
    """The step after which the run went back to bf16, in this launch or in one before; None where it has not."""

    @property
    def matmul_fraction(self) -> float:
        """The share of all matrix products' arithmetic that is in real fp8 now."""
        if self.coverage is None or not self.in_fp8 or self.decision.emulated:
            return 0.0
        return self.coverage.matmul_fraction

    @property
    def went_back(self) -> bool:
        """Whether fp8 was decided and the run computes in bf16 instead."""
        return self.decision.mode == "fp8" and not self.in_fp8

    @property
    def mode(self) -> str:
        """What the run computes in now: one of MODES."""
        return "bf16" if self.went_back else self.decision.mode

    @property
    def label(self) -> str:
        """What a record calls the precision of the run now."""
        return self.mode if self.went_back else self.decision.label

    @property
    def sentence(self) -> str:
        """What the run computes in now and why, in one line."""
        if not self.went_back:
            return self.decision.sentence
        why = f"the run went back to it at step {self.last_fp8_step}; nothing runs in fp8"
        return f"precision: bf16 instead of fp8 ({self.decision.title}), because {why}"

    @property
    def words(self) -> str:
        """The decision and what is in fp8, for people."""
        return f"{self.sentence}\n\n{self.coverage.words}" if self.coverage and self.in_fp8 else self.sentence

    @property
    def settings(self) -> dict[str, Any]:
        """What decides about result and speed: the precision, and of fp8 its settings, with the recipe that `auto` became."""
        if self.decision.mode != "fp8":
            return {"precision": self.label}
        return {
            "precision": self.label,
            "precision.recipe": self.decision.recipe,
            "precision.format": self.decision.format,
            "precision.bf16_first_blocks": self.wanted.bf16_first_blocks,
            "precision.bf16_last_blocks": self.wanted.bf16_last_blocks,
            **{f"precision.options.{name}": value for name, value in self.wanted.options.items()},
        }

    def facts(self) -> dict[str, Any]:
        """What a manifest states, as plain values; `arguments` is the recipe in TransformerEngine's words."""
        now = {"mode": self.mode, "label": self.label, "sentence": self.sentence, "bf16_since_step": self.last_fp8_step}
        if not self.in_fp8:
            return {**self.decision.as_json(), **now}
        covered = {} if self.coverage is None else vars(self.coverage)
        return {**self.decision.as_json(), **now, "arguments": str(self.made), **covered}

    def start_facts(self) -> dict[str, Any]:
        """What the journal states of a launch's precision; what was asked for and why it is not that, where it is not."""
        decision = self.decision
        fallback = {} if decision.mode == decision.asked else {"instead_of": decision.asked, "because": decision.reason}
        return {"precision": decision.label, **fallback}
