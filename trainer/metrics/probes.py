"""What else is measured of model and optimizer, now and then: a metric is one probe, a function with a tag and a unit.

A probe looks at one update: the weights after it, an even sample of them from before and after, and the gradients it was made from. It
returns a tensor that stays on the device; all probes' numbers travel to the host together, and are read late. To add one, write it below:

    @probe("zero_gradients/{group}", "Gradient elements that are exactly zero, of an even sample.", unit="fraction")
    def zero_gradients(update: Update) -> Tensor:
        zeros = [(sample == 0).float().mean() for sample in update.split(update.gradient_sample)]
        return update.sums(torch.stack(zeros) * update.sizes) / update.sums(update.sizes)

A tag with `{group}` wants one number a layer group, in their order [G]; one without wants a single number [0-d]. The sentence
is the help. A probe changes nothing and draws no random number. One that raises is counted and logged, and training goes on.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config.length import is_due
from trainer.host_copy import NamedHostCopy
from trainer.metrics.histograms import Histogram, histogram_of
from trainer.metrics.layer_groups import group_order, layer_groups, short_names
from trainer.parallel import Reads
from trainer.tensor_parts import elements, is_part, own, sum_over_parts, whole
from trainer.text import one_line

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP = "{group}"
"""Stands in a tag for each layer group."""

SAMPLE_ELEMENTS = 2**14
"""Greatest number of elements of a tensor that a sample has."""

HISTOGRAM_TAGS = {
    "weights/{parameter}": ("1", "Values of a parameter after the update, of an even sample."),
    "gradients/{parameter}": (
        "nats per token",
        "Elements of its gradient as the update saw it, after clipping, of an even sample.",
    ),
}
"""Tag -> (unit, help) of the histograms, one a parameter."""


@dataclass(frozen=True)
class Probe:
    """A metric: what measures it, and what it is."""

    tag: str
    unit: str
    measure: Callable[["Update"], Tensor]
    help: str


PROBES: dict[str, Probe] = {}
"""Every probe by its tag."""


def probe(tag: str, help: str, *, unit: str) -> Callable[[Callable[["Update"], Tensor]], Callable[["Update"], Tensor]]:
    """Registers a function as a probe; its help is given, and not read of a docstring, which `python -OO` leaves out."""

    def register(measure: Callable[["Update"], Tensor]) -> Callable[["Update"], Tensor]:
        assert tag not in PROBES, f"there is a probe with the tag {tag!r} already"
        PROBES[tag] = Probe(tag, unit, measure, help)
        return measure

    return register


def histogram_interval(every_steps: int | None, max_steps: int) -> int:
    """Steps between two histograms: what was asked for, or a hundredth of the run and at least 100, which bounds the event file."""
    return max(100, math.ceil(max_steps / 100)) if every_steps is None else every_steps


class Layout:
    """The trainable parameters of a model, each once, with their layer groups and where their samples lie."""

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
        assert named, "a model without trainable parameters has nothing to measure"
        names = [name for name, _ in named]
        self.names = short_names(names)
        self.parameters = [parameter for _, parameter in named]
        of_each = layer_groups(names)
        self.groups = group_order(of_each)
        self.device = self.parameters[0].device
        self.dtype = reduce(torch.promote_types, (p.dtype for p in self.parameters), torch.float32)
        self.strides = [sample_stride(p.numel(), p.shape[-1] if p.ndim else 1) for p in self.parameters]
        self.sample_sizes = [-(-p.numel() // stride) for p, stride in zip(self.parameters, self.strides, strict=True)]
        self.sizes = self._on_device([p.numel() for p in self.parameters])
        self.sampled = self._on_device(self.sample_sizes)
        members = [[i for i, group in enumerate(of_each) if group == wanted] for wanted in self.groups]
        width = max(map(len, members))
        nobody = len(self.names)
        rows = [row + [nobody] * (width - len(row)) for row in members]
        self.members = torch.tensor(rows, device=self.device)
        """[G, M] places of each group's parameters; a place after the last one stands for nobody."""

    def sample(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Elements at even distances of a tensor for each parameter, one after the other [N]; zeros for one that is None."""
        if is_part(self.parameters[0]):
            return self._sample_of_parts(tensors)
        zeros = torch.zeros(max(self.sample_sizes) if any(t is None for t in tensors) else 0, device=self.device)
        pieces = [
            zeros[:size] if tensor is None else _every(tensor, stride)
            for tensor, stride, size in zip(tensors, self.strides, self.sample_sizes, strict=True)
        ]
        return torch.cat(pieces).to(self.dtype)  # a copy, also of one piece: the weights will change

    def _sample_of_parts(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The same sample where ranks hold parts: each puts in what it has, and one sum gives it to all."""
        sample = torch.zeros(sum(self.sample_sizes), dtype=self.dtype, device=self.device)
        for tensor, room, stride in zip(tensors, sample.split(self.sample_sizes), self.strides, strict=True):
            if tensor is not None:
                held, first = elements(tensor, stride)
                room[first : first + len(held)] = held
        return sum_over_parts(sample, self.parameters[0])

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=self.dtype, device=self.device)


class Update:
    """One step of the optimizer, as a probe sees it: after it was taken, with the gradients still there."""

    def __init__(self, layout: Layout, old_sample: Tensor | None) -> None:
        self._layout, self._old_sample = layout, old_sample
        self.weights: list[Tensor] = [parameter.detach() for parameter in layout.parameters]
        """[P] parameters, each once (a tied head is the embedding); of a sharded model DTensors, and every rank measures."""
        self.gradients: list[Tensor | None] = [parameter.grad for parameter in layout.parameters]
        """[P] after clipping; None for a parameter that got none."""
        self.names, self.groups = layout.names, layout.groups
        self.sizes = layout.sizes
        """[P] elements of each parameter."""

    @property
    def old_sample(self) -> Tensor:
        """[N] a sample of the weights before the update."""
        if self._old_sample is None:
            raise RuntimeError("there is no sample of the weights before the update")
        return self._old_sample

    @cached_property
    def sample(self) -> Tensor:
        """[N] the same elements after it."""
        return self._layout.sample(self.weights)

    @cached_property
    def gradient_sample(self) -> Tensor:
        """[N] the same elements of the gradients; zeros where there is none."""
        return self._layout.sample(self.gradients)

    def split(self, sample: Tensor) -> list[Tensor]:
        """A sample [N] by parameter [P]."""
        return list(sample.split(self._layout.sample_sizes))

    def norms(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """[P] L2 norm of a tensor for each parameter; 0 for one that is None."""
        there = [own(tensor) for tensor in tensors if tensor is not None]
        found = iter(torch._foreach_norm(there, 2, dtype=self._layout.dtype) if there else ())
        zero = self.sizes.new_zeros(()) if len(there) < len(tensors) else None
        norms = torch.stack([zero if tensor is None else next(found) for tensor in tensors])
        part = next((tensor for tensor in tensors if is_part(tensor)), None)
        return norms if part is None else sum_over_parts(norms.square(), part).sqrt()

    def sample_norms(self, sample: Tensor) -> Tensor:
        """[P] the L2 norm of each whole tensor, by its sample [N]."""
        return self.norms(self.split(sample)) * (self.sizes / self._layout.sampled).sqrt()

    def sums(self, numbers: Tensor) -> Tensor:
        """[G] the sum of a number of each parameter [P] over each layer group."""
        return torch.cat((numbers, numbers.new_zeros(1)))[self._layout.members].sum(dim=1)

    def group_norms(self, norms: Tensor) -> Tensor:
        """[G] the L2 norm of each layer group, from those of its parameters [P]."""
        return self.sums(norms.square()).sqrt()


@probe(
    "grad_norm/{group}",
    "L2 norm of a layer group's gradient as the update saw it, after clipping (the total before it is optim/grad_norm).",
    unit="nats per token",
)
def grad_norm(update: Update) -> Tensor:
    return update.group_norms(update.norms(update.gradients))


@probe("param_norm/{group}", "L2 norm of a layer group's weights after the update.", unit="1")
def param_norm(update: Update) -> Tensor:
    return update.group_norms(update.norms(update.weights))


@probe(
    "update_ratio/{group}",
    "L2 norm of the update over that of the weights before it, of an even sample of at most 16,384 elements a tensor.",
    unit="ratio",
)
def update_ratio(update: Update) -> Tensor:
    change = update.group_norms(update.sample_norms(update.sample - update.old_sample))
    return change / update.group_norms(update.sample_norms(update.old_sample))


@dataclass(frozen=True)
class Reading:
    """What was measured of one step, on its way to the host; read on any thread."""

    step: int
    _groups: list[str]
    _numbers: NamedHostCopy | None
    _samples: NamedHostCopy | None

    def numbers(self) -> dict[str, float]:
        """Each tag's number, of the probes that could be measured; waits for those that have not arrived."""
        found = self._numbers.read() if self._numbers else {}
        return {
            tag: float(number)
            for template, numbers in found.items()
            for tag, number in zip(expand(template, self._groups), numbers, strict=True)
        }

    @property
    def has_histograms(self) -> bool:
        return self._samples is not None

    def histograms(self) -> dict[str, Histogram]:
        """Each tag's histogram, on a step that has them; waits likewise. Values that are not finite are left out, and that is logged."""
        samples = self._samples.read() if self._samples else {}
        histograms = {tag: histogram_of(sample) for tag, sample in samples.items()}
        damaged = {tag: num for tag, sample in samples.items() if (num := np.count_nonzero(~np.isfinite(sample)))}
        if damaged:
            first, num = next(iter(damaged.items()))
            which = f"{len(damaged)} of {len(samples)} histograms leave out values that are not finite"
            example = f"{first} with {num} of {len(samples[first])}"
            log.warning("step %d: %s; the first is %s", self.step, which, example)
        return {tag: histogram for tag, histogram in histograms.items() if histogram}


class Probes:
    """Measures around the updates of some steps; on the others, and on ranks where it does not run, it costs a comparison."""

    READS = Reads.WHOLE_MODEL

    def __init__(
        self,
        model: nn.Module,
        *,
        detail_every_steps: int,
        histogram_every_steps: int,
        runs_here: bool = True,
        probes: Mapping[str, Probe] = PROBES,
    ) -> None:
        """`model` as it is trained, after `prepare`. 0 steps: never."""
        self._detail_every_steps = detail_every_steps if runs_here else 0
        self._histogram_every_steps = histogram_every_steps if runs_here else 0
        self._probes = probes
        self._layout = Layout(model)
        self._reading: Reading | None = None
        self._failures: Counter[str] = Counter()

    def tags(self) -> dict[str, tuple[str, str]]:
        """Tag -> (unit, help) of every number."""
        tags = ((tag, each) for each in self._probes.values() for tag in expand(each.tag, self._layout.groups))
        return {tag: (each.unit, each.help) for tag, each in tags}

    def around_update(self, step: int) -> AbstractContextManager[None]:
        """Measures the update that is taken in this block where that is due; `step` is the number of the step that it completes."""
        numbers, histograms = is_due(step, self._detail_every_steps), is_due(step, self._histogram_every_steps)
        return self._observe(step, numbers, histograms) if numbers or histograms else nullcontext()

    def take(self) -> Reading | None:
        """What was measured since the last call; None where nothing was."""
        reading, self._reading = self._reading, None
        return reading

    @contextmanager
    def _observe(self, step: int, wants_numbers: bool, wants_histograms: bool) -> Iterator[None]:
        layout, before = self._layout, None
        if wants_numbers:
            before = self._try("the weights before the update", lambda: layout.sample(layout.parameters))
        yield
        update = Update(layout, before)
        numbers = self._measure_all(update) if wants_numbers else None
        samples = None
        if wants_histograms:
            samples = self._try("histograms", lambda: NamedHostCopy(histogram_samples(update)))
        self._reading = Reading(step, layout.groups, numbers, samples)

    def _measure_all(self, update: Update) -> NamedHostCopy | None:
        """The numbers of every probe, by its tag, on their way; without those of a probe that raised."""
        numbers = {tag: self._try(tag, partial(measure, probe, update)) for tag, probe in self._probes.items()}
        there = {tag: number for tag, number in numbers.items() if number is not None}
        return self._try("sending the numbers", lambda: NamedHostCopy(there)) if there else None

    @torch.no_grad()
    def _try(self, what: str, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where it raises, which is counted and logged: what stands beside training does not end it."""
        try:
            return work()
        except Exception as error:
            self._failures[what] += 1
            if self._failures[what].bit_count() == 1:  # logged at the 1st, 2nd, 4th, 8th ...
                often = f"{self._failures[what]} times by now"
                log.warning("probes: %s failed, %s (%s); training goes on", what, one_line(error, 1000), often)
            return None


def measure(probe: Probe, update: Update) -> Tensor:
    """A probe's numbers as one dimension of fp32; ValueError when there are not as many as its tag says."""
    numbers = whole(probe.measure(update))
    wanted = [len(update.groups)] if GROUP in probe.tag else []
    if list(numbers.shape) != wanted:
        raise ValueError(f"it returned numbers of shape {list(numbers.shape)}, where its tag asks for {wanted}")
    return numbers.reshape(-1).to(torch.float32)


def histogram_samples(update: Update) -> dict[str, Tensor]:
    """The values that histograms are made of, by tag; a parameter without a gradient has none of it."""
    weights = zip(update.names, update.split(update.sample), strict=True)
    gradients = zip(update.names, update.split(update.gradient_sample), update.gradients, strict=True)
    found = {f"weights/{name}": sample for name, sample in weights}
    return found | {f"gradients/{name}": sample for name, sample, gradient in gradients if gradient is not None}


def expand(tag: str, groups: Sequence[str]) -> list[str]:
    """The tags that a probe's tag stands for: one a layer group, or itself."""
    return [tag.replace(GROUP, group) for group in groups] if GROUP in tag else [tag]


def sample_stride(num_elements: int, width: int) -> int:
    """The distance between the elements of an even sample; prime to the width of the rows, or it would see a few columns only."""
    stride = -(-num_elements // SAMPLE_ELEMENTS)
    while math.gcd(stride, width) > 1:
        stride += 1
    return stride


def _every(tensor: Tensor, stride: int) -> Tensor:
    return tensor.reshape(-1)[::stride]
