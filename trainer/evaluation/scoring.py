"""How likely a model finds the texts of a task: the same numbers to the last bit however many ranks share the work.

The result of a matrix product depends, in its last bits, on how many rows it has and on how many threads compute it: a row's
neighbours in a batch do not enter into it, but their number does (seen with MKL and oneDNN in fp32 and bf16; two threads part the
inner sum of a product of 3,072 terms and more). Two choices that are nearly equal would then be decided by the batch size or by the number of ranks.
So neither has a part in it here:

* The rows of a task, sorted by length, are cut into groups of at most `group_tokens` tokens, a constant. Which rows are
  together, and in what shape, is a function of the task alone: there is no batch size to choose. A group is computed whole, by one
  rank; ranks take groups in turn. What a rank did not compute it adds as zero, so every rank ends with the same bits.
* On a CPU one core computes a group, whatever the number of threads: the cores of a rank work on groups side by side.
* Equal texts are scored once, so that a tie is one: the first of equals is chosen.

What stays is the machine: another kind of device, or another version of torch, may end in other last bits, as anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import beats
from trainer.errors import DataError
from trainer.evaluation.items import Item
from trainer.evaluation.loss import one_thread
from trainer.evaluation.tasks import Task

CPU_GROUP_TOKENS = 1024
CUDA_GROUP_TOKENS = 8192

Score = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs [R, L], positions [N] in the flattened inputs, wanted [N] ids) -> log-probabilities [N] in nats, and whether each wanted id
is the likeliest [N]; all on the device. `model.scores.token_scores` with a model and its precision."""


@dataclass(frozen=True)
class Row:
    """One text as token ids: what the model reads, and how many at its end are scored."""

    ids: tuple[int, ...]
    num_scored: int


@dataclass(frozen=True)
class Encoded:
    """A task as token ids: the distinct rows, and for each item which of them are its pairs."""

    task: Task
    rows: tuple[Row, ...]
    row_of_pair: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TextScore:
    """What a model makes of one continuation."""

    log_likelihood: float
    """Sum over its tokens, nats."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest after those before it."""


def encode_task(
    task: Task, encode: Callable[[str], list[int]], *, start_id: int, begins_always: bool = False, num_positions: int
) -> Encoded:
    """The rows of a task.

    start_id       what stands before a continuation without a context
    begins_always  whether it stands before a context too, as bos does where the tokenizer puts one before every text
    num_positions  of the model: a longer text loses tokens at its front
    raises         DataError when a continuation alone is longer than that
    """
    number_of: dict[Row, int] = {}
    pairs = []
    for item in task.items:
        rows = [
            _row(item, encode, context, continuation, start_id, begins_always, num_positions)
            for context, continuation in item.pairs
        ]
        pairs.append(tuple(number_of.setdefault(row, len(number_of)) for row in rows))
    return Encoded(task, tuple(number_of), tuple(pairs))


def _row(
    item: Item,
    encode: Callable[[str], list[int]],
    context: str,
    continuation: str,
    start_id: int,
    begins_always: bool,
    num_positions: int,
) -> Row:
    """One pair, split into tokens as lm-evaluation-harness does.

    source  lm-evaluation-harness 0.4.13, `TemplateLM._encode_pair` and `HFLM._loglikelihood_tokens`: the two are encoded as one text and
            parted where the context alone ends; spaces at the context's end belong to the continuation; bos stands before each text where the
            tokenizer puts it there, and it or an end of text for an empty context
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = encode(kept) if kept else []
    scored = encode(kept + continuation)[len(before) :]
    if not 0 < len(scored) <= num_positions:
        raise DataError(
            f"{item.where}: {continuation[:60]!r} has {len(scored)} tokens to score, and 1 to {num_positions} were expected, since the model has "
            f"{num_positions} positions; leave the line out"
        )
    begin = [start_id] if begins_always or not before else []
    ids = [*begin, *before, *scored]
    return Row(tuple(ids[-(num_positions + 1) :]), len(scored))


def group_tokens(device_type: str) -> int:
    """Tokens that a group holds at most, padding included: a core's share on a CPU, enough to be busy on a GPU."""
    return CUDA_GROUP_TOKENS if device_type == "cuda" else CPU_GROUP_TOKENS


def cut_into_groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The rows, longest first, in groups of at most `max_tokens` once padded to their longest; a longer row is alone."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def score_rows(
    rows: Sequence[Row],
    score: Score,
    *,
    device: torch.device,
    rank: int,
    world_size: int,
    reduce: Callable[[Tensor], Tensor],
    in_step: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[TextScore]:
    """What the model makes of every row, the same on every rank.

    score     never sees two groups at once on a GPU; on a CPU it is called from several threads
    reduce    sums a tensor over the ranks
    in_step   whether all ranks score a group at the same time, as a sharded model needs it: one thread, and one that has no group left
              scores another once more, of which nothing is kept
    progress  hears the fraction of this rank's groups that are done
    """
    all_groups = cut_into_groups([len(row.ids) - 1 for row in rows], group_tokens(device.type))
    groups = all_groups[rank::world_size]
    totals = torch.zeros(len(rows), 2, dtype=torch.float64)
    for done, (group, scores) in enumerate(
        zip(groups, _each(groups, rows, score, device, in_step), strict=True), start=1
    ):
        totals[group] = scores
        progress(done / len(groups))
        beats.beat()
    if in_step and rank >= (len(all_groups) % world_size or world_size):
        list(_each(all_groups[:1], rows, score, device, in_step))
    totals = reduce(totals.to(device)).cpu()
    return [TextScore(log_likelihood, bool(greedy)) for log_likelihood, greedy in totals.tolist()]


def _each(
    groups: list[list[int]], rows: Sequence[Row], score: Score, device: torch.device, in_step: bool
) -> Iterator[Tensor]:
    """The scores of each group [R, 2]; on a CPU by as many threads as torch has, each of which computes alone."""

    def work(group: list[int]) -> Tensor:
        return _score_group([rows[number] for number in group], score, device)

    if device.type != "cpu":
        yield from map(work, groups)
        return
    with one_thread() as num_threads:
        if in_step:
            yield from map(work, groups)
            return
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, groups)


def _score_group(rows: list[Row], score: Score, device: torch.device) -> Tensor:
    """Log-likelihood and whether it is greedy for each row, [R, 2] float64."""
    length = max(len(row.ids) for row in rows) - 1
    # A position does not see what is to its right, so any id may pad.
    inputs = torch.zeros(len(rows), length, dtype=torch.int64)
    positions: list[int] = []
    wanted: list[int] = []
    for number, row in enumerate(rows):
        inputs[number, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
        end = number * length + len(row.ids) - 1
        positions += range(end - row.num_scored, end)
        wanted += row.ids[-row.num_scored :]
    of_each = (torch.tensor(numbers, device=device) for numbers in (positions, wanted))
    log_probabilities, is_likeliest = score(inputs.to(device), *of_each)
    counts = [row.num_scored for row in rows]
    sums = [part.sum() for part in log_probabilities.double().cpu().split(counts)]
    greedy = [part.all() for part in is_likeliest.cpu().split(counts)]
    return torch.stack((torch.stack(sums), torch.stack(greedy).double()), dim=1)
