"""What was measured, for a person and for a program."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.text import count, duration, numbered, size, table
from trainer.tools.bench.choose import Missing
from trainer.tools.bench.judge import Judgement, gain
from trainer.tools.bench.measure import UNSTEADY, Measurement

_HEADS = ("variant", "step", "varied", "tokens/s", "to bf16", "MFU", "memory", "loss gap", "whole run")


@dataclass(frozen=True)
class Result:
    """The whole measurement."""

    name: str
    settings: list[str]
    """Those that every launch had over the recipe's."""
    conditions: dict[str, Any]
    """What decides about speed: a run with other ones was not measured."""
    date: str
    rounds: int
    steps: int
    """How many were timed in each round, at least."""
    total_tokens: int
    """Of the whole run."""
    measured: list[Measurement]
    missing: list[Missing]
    judgement: Judgement
    seconds: float
    stored_in: Path | None = None

    @property
    def is_steady(self) -> bool:
        """Whether the machine gave every variant about the same pace each time."""
        return all(each.spread <= UNSTEADY for each in self.measured)

    def text(self) -> str:
        """The report, as it is printed."""
        parts = (self._head(), self._table(), self._notes(), self.judgement.sentence)
        return "\n\n".join(filter(None, parts))

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        rows = [
            {
                **asdict(each),
                "variant": each.variant.name,
                "asked": each.variant.asked,
                "recipe": each.variant.recipe,
                "compiled": each.variant.is_compiled,
                "emulated": each.variant.is_emulated,
                "gain": self._gain(each),
                "loss_gap": each.loss_gap if math.isfinite(each.loss_gap or 0.0) else None,
                "run_days": self._run_seconds(each) / 86400,
            }
            for each in self.measured
        ]
        return {
            "name": self.name,
            "date": self.date,
            "recommended": self.judgement.recommended,
            "verdict": self.judgement.sentence,
            "gains": self.judgement.gains,
            "measured": rows,
            "missing": [asdict(each) for each in self.missing],
            "rounds": self.rounds,
            "steps": self.steps,
            "settings": self.settings,
            "conditions": self.conditions,
            "seconds": self.seconds,
            "stored_in": str(self.stored_in) if self.stored_in else None,
        }

    def _gain(self, each: Measurement) -> float | None:
        best = self.judgement.best_bf16
        return None if best is None else gain(each, best)

    def _run_seconds(self, each: Measurement) -> float:
        return self.total_tokens / each.tokens_per_second

    def _head(self) -> str:
        processes = self.conditions["processes"]
        return (
            f"bench precision of {self.name}: {numbered(processes, 'process')} on {self.conditions['device']}, {self.rounds} rounds of "
            f"{self.steps} steps, in {duration(self.seconds)}"
        )

    def _table(self) -> str:
        rows = [_HEADS, *(self._row(each) for each in self.measured)]
        names = [each.variant.name for each in self.measured] + [each.name for each in self.missing]
        width = max(map(len, names))
        lines = table([(str(row[0]).ljust(width), *row[1:]) for row in rows])
        return "\n".join([lines, *(f"  {each.name.ljust(width)}  {each.reason}" for each in self.missing)])

    def _row(self, each: Measurement) -> Sequence[str]:
        more = self._gain(each)
        return (
            each.variant.name,
            duration(each.step_seconds),
            f"{each.spread:.1%}",
            count(each.tokens_per_second),
            "-" if more is None else f"{1 + more:.2f}x",
            "-" if each.mfu is None else f"{each.mfu:.1%}",
            "-" if each.peak_bytes is None else size(each.peak_bytes),
            "-" if each.loss_gap is None else f"{each.loss_gap:+.2%}" + (" RUNS AWAY" if each.has_run_away else ""),
            duration(self._run_seconds(each)),
        )

    def _notes(self) -> str:
        """What to know of the columns, as lines."""
        of_fp8 = any(each.mfu is not None and each.variant.recipe for each in self.measured)
        has_no_mfu = all(each.mfu is None for each in self.measured)
        lacks_memory = any(each.peak_bytes is None for each in self.measured)
        has_emulation = any(each.variant.is_emulated for each in self.measured)
        shakiest = max(self.measured, key=lambda each: each.spread)
        unsteady = f"the machine was not steady (rounds of {shakiest.variant.name} were {shakiest.spread:.0%} apart)"
        again = "measure again when nothing else runs on it"
        loss_gap = "loss gap: to bf16 without torch.compile, over the last third of the steps"
        notes = [
            (True, f"to bf16: tokens/s beside those of the fastest bf16; {loss_gap}"),
            (has_no_mfu, "MFU: unknown, because the peak of this device is not known"),
            (of_fp8, "MFU of fp8 is a share of the GPU's peak in fp8: compare tokens/s"),
            (lacks_memory, "memory: unknown where no launch lasted long enough"),
            (has_emulation, "an emulation rounds as fp8 does and is not fp8: its pace says nothing"),
            (not self.is_steady, f"{unsteady}, and this is not kept for precision.recipe: auto; {again}"),
            (self.stored_in, f"stored in {self.stored_in}, where precision.recipe: auto finds it"),
        ]
        return "\n".join(note for holds, note in notes if holds)
