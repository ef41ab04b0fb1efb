"""A run's metrics.jsonl in one pass, as means over bins of tokens: a month of records takes seconds a gigabyte, and a few megabytes.

Every run of a comparison is cut at the same tokens, so that what stands in one bin was trained on as many tokens. A short run has a bin
for each step, and nothing is lost; a long one has the mean, the least and the greatest of each bin.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.metrics.curves import CURVE

NUM_BINS = 1 << 14
"""Bins from the first token to the last of the longest run; the last fifth of it has 3,000."""

_METRICS = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu")
_CHUNK_BYTES = 4 << 20
_TAIL_BYTES = 1 << 16
_NO_FACTS = frozenset({"step", "tokens", "epoch", "seconds"})
_FACT_ENDINGS = ("val_loss", "bits_per_byte", "/acc", "/acc_norm")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: validation loss, bits a byte and task results by name."""

    tokens: int
    facts: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """What was written of each step, over bins of tokens; every array is [NUM_BINS], and NaN where a bin is empty."""

    bin_tokens: float
    """Tokens in a bin."""
    num_steps: int
    last_tokens: int
    last_finite_tokens: int
    """Tokens up to the last step whose loss is a finite number."""
    seconds: float | None
    """Time of training: step_seconds added up, without evaluations and saves; None when no step says it."""
    num_unfinite: int
    """Steps whose loss was not a finite number; they count in no mean."""
    counts: np.ndarray
    """Steps with a finite loss."""
    sums: dict[str, np.ndarray]
    """Sum over those steps of loss, lr, grad_norm, tokens_per_second and mfu."""
    tokens: np.ndarray
    """Tokens trained on, mean over the bin's steps."""
    hours: np.ndarray
    """Time of training by then, mean over the bin's steps."""
    lowest: np.ndarray
    highest: np.ndarray
    """Least and greatest loss."""
    highest_grad_norm: np.ndarray
    medians: dict[str, float | None]
    """Median over all steps of tokens_per_second and mfu; None when no step says it."""
    digests: dict[int, tuple[int, Any]]
    """Bin -> tokens after its last step, and the digest of that step's batch."""
    evaluations: list[Evaluation]

    def mean(self, metric: str) -> np.ndarray:
        """A metric's mean in each bin."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums[metric] / self.counts


def last_tokens(folder: Path) -> int | None:
    """The tokens of the last whole record, from the end of the file; None when there is none."""
    path = folder / CURVE
    if not path.is_file():
        return None
    num_bytes = path.stat().st_size
    length = _TAIL_BYTES
    while True:
        with open(path, "rb") as file:
            file.seek(max(0, num_bytes - length))
            lines = file.read(length).splitlines(keepends=True)
        for line in reversed(lines):
            for record in _parse([line]):
                if _is_step(record):
                    return int(record["tokens"])
        if length >= num_bytes:
            return None
        length *= 8


def read_curve(folder: Path, bin_tokens: float) -> Curve:
    """Reads a run's curve; lines that are damaged or cut short are left out, as are keys that nobody here knows."""
    reading = _Reading(bin_tokens)
    for records in _chunks(folder / CURVE):
        steps = [record for record in records if _is_step(record)]
        if steps:
            reading.add(steps)
        reading.evaluations += [evaluation for record in records if (evaluation := _evaluation(record))]
    return reading.curve()


def _chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    with open(path, "rb") as file:
        while lines := file.readlines(_CHUNK_BYTES):
            yield _parse(lines)


def _parse(lines: list[bytes]) -> list[dict[str, Any]]:
    """The records of whole lines: all at once, which is three times as fast, and one by one where a line is damaged."""
    if not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        records = []
    if len(records) != len(lines):
        records = [record for line in lines if (record := _parse_one(line)) is not None]
    return [record for record in records if isinstance(record, dict)]


def _parse_one(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_step(record: dict[str, Any]) -> bool:
    return "loss" in record and _is_number(record.get("tokens"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def _evaluation(record: dict[str, Any]) -> Evaluation | None:
    if "loss" in record or not any(key.endswith(_FACT_ENDINGS) for key in record) or not _is_number(record.get("tokens")):
        return None
    facts = {key: float(value) for key, value in record.items() if key not in _NO_FACTS and _is_number(value)}
    return Evaluation(int(record["tokens"]), facts) if facts else None


def _column(records: list[dict[str, Any]], key: str) -> np.ndarray:
    """One key of many records as numbers; NaN where it is absent, not finite or no number."""
    values = [record.get(key) for record in records]
    try:
        column = np.array(values, dtype=float)
    except (TypeError, ValueError):
        column = np.array([value if _is_number(value) else None for value in values], dtype=float)
    column[~np.isfinite(column)] = np.nan
    return column


class _Reading:
    """Bins that are being filled."""

    def __init__(self, bin_tokens: float) -> None:
        self._bin_tokens = bin_tokens
        self._counts = np.zeros(NUM_BINS)
        self._sums = {name: np.zeros(NUM_BINS) for name in (*_METRICS, "tokens", "hours")}
        self._lowest, self._highest, self._highest_grad_norm = (np.full(NUM_BINS, np.nan) for _ in range(3))
        self._speeds: dict[str, list[np.ndarray]] = {"tokens_per_second": [], "mfu": []}
        self._seconds, self._has_seconds, self._num_steps, self._num_unfinite = 0.0, False, 0, 0
        self._last_tokens = self._last_finite_tokens = 0
        self._digests: dict[int, tuple[int, Any]] = {}
        self.evaluations: list[Evaluation] = []

    def add(self, steps: list[dict[str, Any]]) -> None:
        """Adds steps, in their order."""
        columns = {name: _column(steps, name) for name in (*_METRICS, "tokens", "step_seconds")}
        self._has_seconds |= bool(np.isfinite(columns["step_seconds"]).any())
        seconds = self._seconds + np.cumsum(np.nan_to_num(columns["step_seconds"]))
        self._seconds = float(seconds[-1])
        columns["hours"] = seconds / 3600
        bins = np.clip(np.ceil(columns["tokens"] / self._bin_tokens - 1e-9).astype(int) - 1, 0, NUM_BINS - 1)
        finite = np.isfinite(columns["loss"])
        self._num_steps += len(steps)
        self._num_unfinite += int((~finite).sum())
        self._last_tokens = max(self._last_tokens, int(columns["tokens"].max()))
        self._last_finite_tokens = max(self._last_finite_tokens, int(columns["tokens"].max(where=finite, initial=0)))
        self._counts += np.bincount(bins[finite], minlength=NUM_BINS)
        for name, sums in self._sums.items():
            sums += np.bincount(bins[finite], columns[name][finite], minlength=NUM_BINS)
        np.fmin.at(self._lowest, bins, columns["loss"])
        np.fmax.at(self._highest, bins, columns["loss"])
        np.fmax.at(self._highest_grad_norm, bins, columns["grad_norm"])
        for name, parts in self._speeds.items():
            parts.append(columns[name].astype(np.float32))
        digests = ((int(record["tokens"]), record.get("data_digest")) for record in steps)
        self._digests.update(zip(bins.tolist(), digests, strict=True))

    def curve(self) -> Curve:
        """What was read."""
        medians = {}
        for name, parts in self._speeds.items():
            values = np.concatenate(parts) if parts else np.zeros(0)
            values = values[np.isfinite(values)]
            medians[name] = float(np.median(values)) if len(values) else None
        with np.errstate(invalid="ignore", divide="ignore"):
            tokens, hours = (self._sums.pop(name) / self._counts for name in ("tokens", "hours"))
        if not self._has_seconds:
            hours = np.full(NUM_BINS, np.nan)
        return Curve(
            self._bin_tokens, self._num_steps, self._last_tokens, self._last_finite_tokens,
            self._seconds if self._has_seconds else None, self._num_unfinite,
            self._counts, self._sums, tokens, hours, self._lowest, self._highest, self._highest_grad_norm, medians, self._digests,
            self.evaluations,
        )  # fmt: skip
