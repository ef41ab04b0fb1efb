"""Every run against the first: gaps with their bands, at the end and along the way, and what does not compare. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.text import count, numbered
from trainer.tools.compare import align, noise
from trainer.tools.compare.align import WINDOW_FRACTION, Segment, Span, common_span, common_tokens, mean_loss
from trainer.tools.compare.noise import Gap, Spread
from trainer.tools.compare.runs import (
    Run,
    differ_in_seed_alone,
    is_one_recipe,
    same_batches,
    same_held_out,
    same_text,
    same_training_data,
    same_vocabulary,
)

MAX_SEGMENTS = 40
"""Parts of the common tokens in which the gap is followed."""


@dataclass(frozen=True)
class Judged:
    """One quantity of two runs at their common end."""

    what: str
    """`loss`, `val_loss` or `bits_per_byte`."""
    unit: str
    a: float
    b: float
    gap: Gap
    spread: Spread
    over: str
    """What it is a mean over, in words."""

    @property
    def verdict(self) -> str:
        """`worse` or `better`, as B is; or `no difference`, beyond noise."""
        if not self.gap.is_beyond_noise:
            return "no difference"
        return "worse" if self.gap.value > 0 else "better"


@dataclass(frozen=True)
class Pair:
    """One run, B, against the first, A."""

    a: Run
    b: Run
    tokens: int
    """What both were trained on."""
    has_same_batches: bool
    judged: dict[str, Judged]
    """By quantity; only what compares."""
    segments: list[Segment]
    """The gap of the training loss along the common tokens; none where it does not compare."""
    since_tokens: float | None
    """From where the training loss has been apart, beyond noise, in every part; None where it is not, or only in parts of the window."""
    is_equal: bool
    """Whether every training loss is equal to the last bit."""
    notes: list[str]
    """What one has to know to read it."""

    @property
    def deciding(self) -> Judged | None:
        """The quantity that decides: the training loss, where it compares."""
        return next((self.judged[what] for what in ("loss", "val_loss", "bits_per_byte") if what in self.judged), None)

    @property
    def contradicting(self) -> Judged | None:
        """The validation loss (bits per byte, where nats do not compare), where it says something else than the quantity that decides."""
        held_out = self.judged.get("val_loss") or self.judged.get("bits_per_byte")
        return held_out if held_out and self.deciding and held_out.verdict != self.deciding.verdict else None

    @property
    def verdict(self) -> str:
        """What B is to A; of two runs one of which diverged that one is worse, however low its loss was before.

        `mixed` where the losses of training and of validation do not say the same.
        """
        if self.a.has_diverged != self.b.has_diverged:
            return "worse" if self.b.has_diverged else "better"
        if self.contradicting:
            return "mixed"
        return self.deciding.verdict if self.deciding else "cannot be judged"


@dataclass(frozen=True)
class Comparison:
    """Some runs, and what the first is to each of the others."""

    runs: list[Run]
    pairs: list[Pair]


def judge(runs: Sequence[Run]) -> Comparison:
    """All runs but the first, each against the first."""
    return Comparison(list(runs), [_pair(runs[0], other, runs) for other in runs[1:]])


def _pair(a: Run, b: Run, runs: Sequence[Run]) -> Pair:
    paired = same_batches(a, b)
    span = align.end_span(a.curve, b.curve)
    judged: dict[str, Judged] = {}
    parts: list[Segment] = []
    if span and same_vocabulary(a, b) and same_training_data(a, b):
        spread = _spread("loss", a, b, runs, paired, lambda run: _mean_at(run, span, a))
        loss_a, loss_b = (mean_loss(run.curve, span) for run in (a, b))
        found = noise.gap(align.block_gaps(a.curve, b.curve, span), loss_a, spread)
        judged["loss"] = Judged("loss", "nats per token", loss_a, loss_b, found, spread, _over(span, a))
        whole = common_span(a.curve, b.curve)
        number = align.num_segments((a.curve, b.curve), whole, MAX_SEGMENTS)
        parts = align.segments(a.curve, b.curve, whole, spread, number)
    for what, unit, compares in (
        ("val_loss", "nats per token", same_vocabulary(a, b) and same_held_out(a, b)),
        ("bits_per_byte", "bits per byte", same_held_out(a, b) or same_text(a, b)),
    ):
        if compares and (result := _evaluated(what, unit, a, b, runs, paired)):
            judged[what] = result
    since = align.apart_since(parts) if "loss" in judged and judged["loss"].gap.is_beyond_noise else None
    if span and since is not None and since > span.start * a.curve.bin_tokens:
        since = None  # single parts are too noisy to date what the whole window shows
    is_apart = not parts or any(part.gap.value or part.gap.band for part in parts)
    is_equal = not is_apart and _has_same_steps(a, b)
    tokens = common_tokens(a.curve, b.curve)
    return Pair(a, b, tokens, paired, judged, parts, since, is_equal, _notes(a, b, tokens, judged))


def _has_same_steps(a: Run, b: Run) -> bool:
    """Whether the steps that have a finite loss are the same over the common tokens, and both runs hold or both diverge."""
    stop = common_span(a.curve, b.curve).stop
    return a.has_diverged == b.has_diverged and np.array_equal(a.curve.counts[:stop], b.curve.counts[:stop])


def _mean_at(run: Run, span: Span, like: Run) -> float | None:
    """A run's mean loss over a window, where it has been there with a finite one that compares with the other's."""
    is_there = common_span(run.curve).stop >= span.stop and run.curve.counts[span.start : span.stop].any()
    compares = is_there and same_vocabulary(run, like) and same_training_data(run, like)
    return mean_loss(run.curve, span) if compares else None


def _over(span: Span, run: Run) -> str:
    share = (span.stop - span.start) / span.stop
    return f"the last {share:.0%} of {count(span.stop * run.curve.bin_tokens)} tokens".replace("%", " %")


def _spread(
    what: str, a: Run, b: Run, runs: Sequence[Run], paired: bool, value: Callable[[Run], float | None]
) -> Spread:
    """From run to run: among the runs given, those of one recipe (and one seed, where rounding alone is asked for) tell it.

    Two runs that differ in their seed alone are such, also where they are A and B. Where A and B are of one recipe and something else may
    set them apart (the same seed, other versions), B is left out: a gap does not excuse itself.
    """
    excuses_itself = is_one_recipe(a, b) and not differ_in_seed_alone(a, b)
    groups: list[tuple[Run, dict[object, tuple[str, float]]]] = []
    for run in runs:
        level = value(run)
        if level is None or (run is b and excuses_itself):
            continue
        seed = run.settings.get("seed")
        for first, members in groups:
            if is_one_recipe(first, run) and (not paired or first.settings.get("seed") == seed):
                members.setdefault(id(run) if paired else seed, (run.name, level))
                break
        else:
            groups.append((run, {id(run) if paired else seed: (run.name, level)}))
    values = [dict(members.values()) for _, members in groups]
    return noise.spread(values, noise.default_fraction(what, common_tokens(a.curve, b.curve), same_batches=paired))


def _evaluated(what: str, unit: str, a: Run, b: Run, runs: Sequence[Run], paired: bool) -> Judged | None:
    """A quantity of the evaluations over the last fifth of the common tokens, or at the last one that both had."""
    ours, theirs = series(a, what), series(b, what)
    places = _common_places(ours, theirs)
    if not len(places):
        return None
    end = common_tokens(a.curve, b.curve)
    chosen = places[places > (1 - WINDOW_FRACTION) * end] if places[-1] > (1 - WINDOW_FRACTION) * end else places[-1:]
    values_a, values_b = (np.interp(chosen, *each) for each in (ours, theirs))

    def value(run: Run) -> float | None:
        tokens, values = series(run, what)
        has_them = len(tokens) and tokens[0] <= chosen[0] and tokens[-1] >= chosen[-1] and same_held_out(run, a)
        return float(np.interp(chosen, tokens, values).mean()) if has_them else None

    spread = _spread(what, a, b, runs, paired, value)
    which = f"{len(chosen)} evaluations up to" if len(chosen) > 1 else "the evaluation at"
    found = noise.gap(values_b - values_a, float(values_a.mean()), spread)
    over = f"{which} {count(chosen[-1])} tokens"
    return Judged(what, unit, float(values_a.mean()), float(values_b.mean()), found, spread, over)


def series(run: Run, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, values) of one quantity of a run's evaluations."""
    known = {each.tokens: each.facts[what] for each in run.curve.evaluations if what in each.facts}
    return np.array(sorted(known), dtype=float), np.array([known[tokens] for tokens in sorted(known)], dtype=float)


def _common_places(ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The tokens at which both were evaluated; A's own, with B's in between interpolated, where there are none."""
    if not len(ours[0]) or not len(theirs[0]):
        return np.zeros(0)
    both = np.intersect1d(ours[0], theirs[0])
    return both if len(both) else ours[0][(ours[0] >= theirs[0][0]) & (ours[0] <= theirs[0][-1])]


def _notes(a: Run, b: Run, tokens: int, judged: dict[str, Judged]) -> list[str]:
    notes, both = [], f"{a.name} and {b.name}"
    if not same_vocabulary(a, b):
        has_bits = "bits_per_byte" in judged
        bits = "bits per byte stand in for them" if has_bits else "no bits per byte of the same text are known for both"
        notes.append(f"{both} have different tokenizers: their nats per token do not compare, and {bits}")
    elif not same_training_data(a, b):
        notes.append(f"{both} were trained on different data: their training losses do not compare")
    if not same_held_out(a, b) and same_vocabulary(a, b):
        notes.append(f"{both} were validated on different data: their validation losses do not compare")
    if a.curve.last_tokens != b.curve.last_tokens:
        shorter, longer = sorted((a, b), key=lambda run: run.curve.last_tokens)
        notes.append(
            f"compared over the {count(tokens)} tokens that both have: {longer.name} went on to {count(longer.curve.last_tokens)}, "
            f"{shorter.name} did not"
        )
    keys = filter(_is_schedule, {**a.settings, **b.settings})
    schedules = [(key, a.settings.get(key), b.settings.get(key)) for key in keys]
    if differing := [f"{key} {ours} and {theirs}" for key, ours, theirs in schedules if ours != theirs]:
        notes.append(
            f"{both} have different schedules ({', '.join(differing)}): at equal tokens one of them may have lowered its learning rate "
            "further, so only their ends compare"
        )
    if differ_in_seed_alone(a, b):
        notes.append(f"{both} differ in their seed alone: their gap is noise, and measures it")
        if any(_is_far_apart(each, tokens) for each in judged.values()):
            notes[-1] += "; it is more than runs of one recipe are assumed to end apart, so compare more seeds of it"
    elif is_one_recipe(a, b) and any(each.gap.is_beyond_noise for each in judged.values()):
        notes.append(
            f"{both} are of one recipe: what sets them apart is chance, or what is no setting (versions, the machine), so runs of "
            "it end further apart than was assumed; compare more seeds of it"
        )
    for run in (a, b):
        if run.curve.num_unfinite:
            notes.append(
                f"{run.name} has {numbered(run.curve.num_unfinite, 'step')} whose loss is not finite, left out of every mean"
            )
    return notes


def _is_far_apart(judged: Judged, tokens: int) -> bool:
    """Whether the measured part of the noise is much more than what is assumed where nobody measured."""
    return judged.spread.fraction > 1.5 * noise.default_fraction(judged.what, tokens, same_batches=False)


def _is_schedule(key: str) -> bool:
    return key == "max_steps" or key.startswith("schedule.")
