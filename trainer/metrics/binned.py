"""A run's metrics.jsonl as means over bins of tokens, to be drawn and compared: of a long one from its index, whose blocks are small beside the run.

Every run of a comparison is cut at the same tokens, so that what stands in one bin was trained on as many tokens. A short run has a bin
for each step, and nothing is lost; a long one has the mean, the least and the greatest of each bin, and beyond a million steps of each block.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from trainer.metrics.curves import CURVE, records_backward
from trainer.metrics.index import SUMMED, Block, is_number, scan

NUM_BINS = 1 << 14
"""Bins from the first token to the last of the longest run; the last fifth of it has 3,000."""

MOST_STEPS_READ = 1_000_000
"""A run of more is read from its index: a thousand blocks then, and ever finer ones beside the run."""

_METRICS = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu")
_PLACES = ("tokens", "step", "hours")
"""What a curve can be drawn by."""
CHUNK_BYTES, CHUNK_RECORDS = 4 << 20, 10_000
_NO_FACTS = frozenset({"step", "tokens", "epoch", "seconds"})
_FACT_ENDINGS = ("val_loss", "bits_per_byte", "/acc", "/acc_norm")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: validation loss, bits per byte and task results by name."""

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
    steps: np.ndarray
    """The number of the step, mean over the bin's."""
    hours: np.ndarray
    """Time of training by then, mean over the bin's steps."""
    lowest: np.ndarray
    highest: np.ndarray
    """Least and greatest loss."""
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
    last = next((record for _, record in records_backward(folder / CURVE) if _is_step(record)), None)
    return int(last["tokens"]) if last else None


def read_curve(folder: Path, bin_tokens: float) -> Curve:
    """Reads a run's curve; lines that are damaged or cut short are left out, as are keys that nobody here knows."""
    reading = _Reading(bin_tokens)
    for found in _found(folder / CURVE):
        if isinstance(found, Block):
            reading.add_block(found)
            records = found.evaluations
        else:
            records = found
            if steps := [record for record in records if _is_step(record)]:
                reading.add(steps)
        reading.evaluations += [evaluation for record in records if (evaluation := _evaluation(record))]
    return reading.curve()


def _found(path: Path) -> Iterator[Block | list[dict[str, Any]]]:
    """What a curve has, in its order: blocks of many steps where it is long, and otherwise records, many at once."""
    last = next((record["step"] for _, record in records_backward(path)), 0)
    if last <= MOST_STEPS_READ:
        yield from chunks(path)
        return
    for kind, group in groupby(scan(path), type):
        if kind is Block:
            yield from (block for block in group if isinstance(block, Block))
        else:
            while records := [record for record in islice(group, CHUNK_RECORDS) if isinstance(record, dict)]:
                yield records


def chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    with open(path, "rb") as file:
        while lines := file.readlines(CHUNK_BYTES):
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
    return "loss" in record and is_number(record.get("tokens"))


def _evaluation(record: dict[str, Any]) -> Evaluation | None:
    is_evaluation = "loss" not in record and any(key.endswith(_FACT_ENDINGS) for key in record)
    if not is_evaluation or not is_number(record.get("tokens")):
        return None
    facts = {key: float(value) for key, value in record.items() if key not in _NO_FACTS and is_number(value)}
    return Evaluation(int(record["tokens"]), facts) if facts else None


def _column(records: list[dict[str, Any]], key: str) -> np.ndarray:
    """One key of many records as numbers; NaN where it is absent, not finite or not a number."""
    values = [record.get(key) for record in records]
    try:
        column = np.array(values, dtype=float)
    except (TypeError, ValueError):
        column = np.array([value if is_number(value) else None for value in values], dtype=float)
    column[~np.isfinite(column)] = np.nan
    return column


def _median(values: np.ndarray, weights: np.ndarray) -> float | None:
    """The median of values [N] that stand for as many as their weights say; None of none."""
    if not len(values):
        return None
    if (weights == 1).all():
        return float(np.median(values))
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


class _Reading:
    """Bins that are being filled."""

    def __init__(self, bin_tokens: float) -> None:
        self._bin_tokens = bin_tokens
        self._counts = np.zeros(NUM_BINS)
        self._sums = {name: np.zeros(NUM_BINS) for name in (*_METRICS, *_PLACES)}
        self._lowest, self._highest = np.full(NUM_BINS, np.nan), np.full(NUM_BINS, np.nan)
        self._speeds: dict[str, list[np.ndarray]] = {"tokens_per_second": [], "mfu": []}
        self._speed_weights: dict[str, list[np.ndarray]] = {"tokens_per_second": [], "mfu": []}
        self._seconds, self._has_seconds, self._num_steps, self._num_unfinite = 0.0, False, 0, 0
        self._last_tokens = self._last_finite_tokens = 0
        self._digests: dict[int, tuple[int, Any]] = {}
        self.evaluations: list[Evaluation] = []

    def add(self, steps: list[dict[str, Any]]) -> None:
        """Adds steps, in their order."""
        columns = {name: _column(steps, name) for name in (*_METRICS, "tokens", "step", "step_seconds")}
        self._has_seconds |= bool(np.isfinite(columns["step_seconds"]).any())
        seconds = self._seconds + np.cumsum(np.nan_to_num(columns["step_seconds"]))
        self._seconds = float(seconds[-1])
        columns["hours"] = seconds / 3600
        bins = self._bin(columns["tokens"])
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
        for name, parts in self._speeds.items():
            parts.append(columns[name].astype(np.float32))
            self._speed_weights[name].append(np.ones(len(steps), np.float32))
        digests = ((int(record["tokens"]), record.get("data_digest")) for record in steps)
        self._digests.update(zip(bins.tolist(), digests, strict=True))

    def add_block(self, block: Block) -> None:
        """Adds a block of steps, all of them where its last one belongs."""
        before = self._seconds
        place = min(max(math.ceil(block.tokens / self._bin_tokens - 1e-9) - 1, 0), NUM_BINS - 1)
        self._has_seconds |= block.seconds is not None
        self._seconds += block.seconds or 0.0
        self._num_steps += block.num_steps
        self._num_unfinite += block.num_unfinite
        self._last_tokens = max(self._last_tokens, block.tokens)
        self._last_finite_tokens = max(self._last_finite_tokens, block.finite_tokens)
        num_finite = block.num_steps - block.num_unfinite
        self._counts[place] += num_finite
        for name in SUMMED:
            if num_finite:
                self._sums[name][place] += block.sums.get(name, np.nan)
        self._sums["step"][place] += num_finite * (block.step - (block.num_steps - 1) / 2)
        self._sums["hours"][place] += (num_finite * before + block.elapsed) / 3600
        for array, value, choose in ((self._lowest, block.lowest, np.fmin), (self._highest, block.highest, np.fmax)):
            array[place] = choose(array[place], np.nan if value is None else value)
        for name, value in block.medians.items():
            self._speeds[name].append(np.array([value], np.float32))
            self._speed_weights[name].append(np.array([block.num_steps], np.float32))
        self._digests[place] = (block.tokens, block.digest)

    def _bin(self, tokens: np.ndarray) -> np.ndarray:
        return np.clip(np.ceil(tokens / self._bin_tokens - 1e-9).astype(int) - 1, 0, NUM_BINS - 1)

    def curve(self) -> Curve:
        """What was read."""
        medians = {}
        for name, parts in self._speeds.items():
            values, weights = (np.concatenate(each or [np.zeros(0)]) for each in (parts, self._speed_weights[name]))
            is_there = np.isfinite(values)
            medians[name] = _median(values[is_there], weights[is_there])
        with np.errstate(invalid="ignore", divide="ignore"):
            tokens, steps, hours = (self._sums.pop(name) / self._counts for name in _PLACES)
        if not self._has_seconds:
            hours = np.full(NUM_BINS, np.nan)
        return Curve(
            self._bin_tokens,
            self._num_steps,
            self._last_tokens,
            self._last_finite_tokens,
            self._seconds if self._has_seconds else None,
            self._num_unfinite,
            self._counts,
            self._sums,
            tokens,
            steps,
            hours,
            self._lowest,
            self._highest,
            medians,
            self._digests,
            self.evaluations,
        )
