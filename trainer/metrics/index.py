"""metrics.index.jsonl: what each block of BLOCK_STEPS steps of metrics.jsonl comes to, one line a block.

Whoever wants to know of every step reads this, and of the curve only what is behind the last block. Like a tracker it follows the curve,
on the thread that draws; it may lag, be damaged, be absent (runs of earlier versions) or be of a curve that has been cut since: what a
block says counts where it fits to the curve, and the rest of the curve is read itself.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from trainer import files
from trainer.metrics.curves import CURVE, records_backward, records_from

INDEX = "metrics.index.jsonl"

BLOCK_STEPS = 1024
"""A block ends with a step that is a multiple of this: blocks of two runs are of the same steps."""

SUMMED = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "tokens")
MEDIANS = ("tokens_per_second", "mfu")

_ROUND_RECORDS = 20_000
"""Records that one call takes of a curve that has no index yet."""


@dataclass
class Block:
    """Some successive steps, and the evaluations among them. Of a number that no step has there is nothing, or None."""

    begin: int
    end: int
    """Bytes of the curve: the first of the block's, and the one after it."""
    step: int = 0
    """The last one."""
    num_steps: int = 0
    num_unfinite: int = 0
    """Steps whose loss is not a finite number; they count in no sum."""
    tokens: int = 0
    """After the last step."""
    finite_tokens: int = 0
    """After the last step with a finite loss; 0 when there is none."""
    seconds: float | None = None
    """Of training."""
    elapsed: float = 0.0
    """Sum over the steps of the seconds from the block's begin to the step's end."""
    sums: dict[str, float] = field(default_factory=dict)
    medians: dict[str, float] = field(default_factory=dict)
    lowest: float | None = None
    highest: float | None = None
    """Least and greatest loss."""
    highest_grad_norm: float | None = None
    digest: Any = None
    """Of the last step's batch."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Their whole records."""


def scan(curve: Path) -> Iterator[Block | dict[str, Any]]:
    """What a curve has, in its order: blocks as far as its index goes, and records where it does not."""
    position = 0
    for block in _sound_blocks(curve):
        if position < block.begin:
            yield from (record for _, record in records_from(curve, position, block.begin))
        yield block
        position = block.end
    yield from (record for _, record in records_from(curve, position))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def block_of(records: Sequence[Mapping[str, Any]], begin: int, end: int) -> Block:
    """What these records, of the curve's bytes from `begin` up to `end`, come to."""
    block = Block(begin, end, evaluations=[dict(record) for record in records if "loss" not in record])
    steps = [record for record in records if "loss" in record]
    for record in steps:
        _add(block, record)
    for name in MEDIANS:
        if values := [record[name] for record in steps if is_number(record.get(name))]:
            block.medians[name] = median(values)
    return block


def _add(block: Block, record: Mapping[str, Any]) -> None:
    block.step, block.digest = record["step"], record.get("data_digest")
    block.num_steps += 1
    if is_number(seconds := record.get("step_seconds")):
        block.seconds = (block.seconds or 0.0) + seconds
    if is_number(record.get("tokens")):
        block.tokens = record["tokens"]
    norm, loss = record.get("grad_norm"), record["loss"]
    if is_number(norm):
        block.highest_grad_norm = norm if block.highest_grad_norm is None else max(block.highest_grad_norm, norm)
    if not is_number(loss):
        block.num_unfinite += 1
        return
    block.finite_tokens = block.tokens
    block.elapsed += block.seconds or 0.0
    block.lowest = loss if block.lowest is None else min(block.lowest, loss)
    block.highest = loss if block.highest is None else max(block.highest, loss)
    for name in SUMMED:
        if is_number(value := record.get(name)):
            block.sums[name] = block.sums.get(name, 0.0) + value


class CurveIndex:
    """The index of a run's curve while it is trained: catches up with the curve whenever it is drawn."""

    name = INDEX
    writer = None
    is_paused = False

    def __init__(self, folder: Path) -> None:
        """Takes up the index as far as it fits to the curve; what does not goes."""
        self._curve, self._path = folder / CURVE, folder / INDEX
        end, block = _last_sound(self._path, self._curve)
        if self._path.is_file() and end != self._path.stat().st_size:
            files.truncate_file(self._path, end)
        self._begin = self.position = block.end if block else 0
        """`position`: the byte of the curve up to which it has come."""
        self._records: list[dict[str, Any]] = []

    def draw(self) -> None:
        """Writes the blocks that have become whole; raises OSError, and then the next call begins again at the last that was written."""
        try:
            for number, (end, record) in enumerate(records_from(self._curve, self.position)):
                self.position = end
                self._records.append(record)
                if "loss" in record and record["step"] % BLOCK_STEPS == 0:
                    self._write_block()
                if number + 1 >= _ROUND_RECORDS:
                    return
        except OSError:
            self.position, self._records = self._begin, []
            raise

    def close(self) -> None:
        """Nothing is held open."""

    def _write_block(self) -> None:
        block = block_of(self._records, self._begin, self.position)
        files.append_line(self._path, json.dumps(asdict(block), separators=(",", ":")))
        self._begin, self._records = self.position, []


def _sound_blocks(curve: Path) -> Iterator[Block]:
    path = curve.with_name(INDEX)
    end, last = _last_sound(path, curve)
    position = 0
    for _, content in records_from(path, 0, end):
        block = _parse(content)
        if block is not None and position <= block.begin < block.end <= (last.end if last else 0):
            position = block.end
            yield block


def _last_sound(path: Path, curve: Path) -> tuple[int, Block | None]:
    """(byte after its line, last block of an index that fits to the curve); (0, None) when there is none."""
    size = curve.stat().st_size if curve.is_file() else 0
    for end, content in records_backward(path):
        block = _parse(content)
        if block is None or block.end > size:
            continue
        before = next(records_backward(curve, block.end), None)
        if before is not None and before[0] == block.end and before[1]["step"] == block.step:
            return end, block
    return 0, None


def _parse(content: Mapping[str, Any]) -> Block | None:
    try:
        return Block(**content)
    except TypeError:  # of another version
        return None
