"""Verdicts on synthetic runs: equal ones, seeds of one recipe, planted gaps, and what does not compare."""

import numpy as np
import pytest

from tests.messages import names, says
from tests.written_runs import STEP_TOKENS, compared, losses, write_run
from trainer.metrics.binned import NUM_BINS, read_curve
from trainer.tools.compare.align import Span, end_span, hours_to_reach, losses_by_hours, mean_loss
from trainer.tools.compare.show import sentences


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)


def pair(tmp_path, first, second, **facts):
    return compared(write_run(tmp_path, "a", first), write_run(tmp_path, "b", second, **facts)).pairs[0]


def test_equal_runs_are_equal(tmp_path):
    found = pair(tmp_path, losses(), losses())
    assert found.is_equal
    assert found.verdict == "no difference"
    assert found.has_same_batches
    assert found.judged["loss"].gap.value == 0.0 == found.judged["loss"].gap.band
    assert found.since_tokens is None


def test_two_seeds_of_one_recipe_are_no_different(tmp_path):
    found = pair(tmp_path, losses(seed=1), losses(seed=2), seed=2)
    assert not found.is_equal
    assert found.verdict == "no difference"
    assert not found.has_same_batches
    assert 0 < abs(found.judged["loss"].gap.value) < found.judged["loss"].gap.band


@pytest.mark.parametrize("offset", [0.5, -0.5, 0.01])
def test_two_runs_that_differ_in_the_seed_alone_are_the_measure_of_noise_however_far_apart(tmp_path, offset):
    evaluations = [{step: {"val_loss": 3.0 + level} for step in (50, 100, 180, 190, 200)} for level in (0.0, offset)]
    a, b = (
        write_run(tmp_path, name, losses(seed=seed) + level, seed=seed, evaluations=evaluated)
        for name, seed, level, evaluated in (("a", 1, 0.0, evaluations[0]), ("b", 2, offset, evaluations[1]))
    )
    (found,) = compared(a, b).pairs
    assert found.verdict == "no difference"
    assert {judged.verdict for judged in found.judged.values()} == {"no difference"}
    assert found.judged["loss"].spread.measured_on == ("a", "b")
    says(found.notes[0], "seed")
    assert names(found.notes[0], "assumed") == (abs(offset) == 0.5)
    other = write_run(tmp_path, "other", losses(seed=1) + offset, seed=3, settings={"optimizer": {"lr": 0.1}})
    assert compared(a, other, b).pairs[0].verdict == "no difference", "what they measure holds for other recipes"


def test_one_recipe_and_one_seed_that_end_apart_are_not_excused_by_themselves(tmp_path):
    values = losses()
    found = pair(tmp_path, values, values + 0.5)
    assert found.verdict == "worse"
    says(found.notes[0], "one recipe")


@pytest.mark.parametrize(
    ("training", "held_out", "verdict"),
    [
        (0.5, 0.5, "worse"),
        (-0.5, -0.5, "better"),
        (0.5, 0.0, "mixed"),
        (0.5, -0.5, "mixed"),
        (0.0, 0.5, "mixed"),
        (0.0, 0.0, "no difference"),
    ],
)
@pytest.mark.parametrize(("what", "named"), [("val_loss", "validation loss"), ("bits_per_byte", "bits per byte")])
def test_a_verdict_that_the_validation_loss_does_not_share_says_so(tmp_path, training, held_out, verdict, what, named):
    settings = {
        "optimizer": {"lr": 0.1},
        **({} if what == "val_loss" else {"sequence_length": 77}),
    }  # nats of another cut do not compare
    steps = (170, 180, 190, 200)
    a = write_run(tmp_path, "a", losses(seed=1), evaluations={step: {what: 3.0 + step / 1e5} for step in steps})
    b = write_run(
        tmp_path,
        "b",
        losses(seed=1) + training + 1e-6,
        seed=2,
        settings=settings,
        evaluations={step: {what: 3.0001 + held_out + step / 1e5} for step in steps},
    )
    (found,) = compared(a, b).pairs
    headline = sentences(found)[0]
    assert list(found.judged) == ["loss", what]
    assert found.verdict == verdict
    assert (named in headline) == (verdict == "mixed")


def broken_from(step, seed=0):
    values = losses(seed=seed)
    values[step:] = np.nan
    return values


@pytest.mark.parametrize("facts", [{"second": broken_from(100)}, {"second": losses(), "outcome": "diverged"}])
def test_a_run_that_diverged_is_worse_whatever_its_loss_was_before(tmp_path, facts):
    found = pair(tmp_path, losses(), **facts)
    assert found.verdict == "worse"
    assert not found.is_equal
    assert found.judged["loss"].verdict == "no difference"


def test_a_run_is_better_than_one_that_diverged(tmp_path):
    assert pair(tmp_path, broken_from(190), losses()).verdict == "better"


def test_two_runs_that_diverged_are_judged_by_what_they_did_before(tmp_path):
    assert pair(tmp_path, broken_from(100), broken_from(100, seed=1)).verdict == "no difference"


@pytest.mark.filterwarnings("error")
def test_a_run_without_a_finite_loss_does_not_widen_the_noise_of_the_others(tmp_path):
    a, b = (
        write_run(tmp_path, "a", losses()),
        write_run(tmp_path, "b", losses() + 0.3, settings={"optimizer": {"lr": 0.002}}),
    )
    alone = compared(a, b).pairs[0]
    among = compared(a, b, write_run(tmp_path, "broken", broken_from(0))).pairs[0]
    assert among.verdict == "worse"
    assert among.judged["loss"].gap == alone.judged["loss"].gap


@pytest.mark.parametrize(("share", "verdict"), [(0.01, "worse"), (-0.01, "better")])
def test_one_percent_of_loss_is_found_on_the_same_batches(tmp_path, share, verdict):
    values = losses()
    drift = losses(seed=9, noise=0.002) - losses(noise=0.0)
    found = pair(tmp_path, values, values * (1 + share) + drift)
    gap = found.judged["loss"].gap
    assert found.verdict == verdict
    assert gap.value == pytest.approx(share * found.judged["loss"].a, abs=0.004)
    assert found.since_tokens < 20 * STEP_TOKENS


def test_a_gap_that_opens_late_is_dated(tmp_path):
    values = losses()
    later = values + np.where(np.arange(200) >= 100, 0.2, 0.0)
    assert 90 * STEP_TOKENS <= pair(tmp_path, values, later).since_tokens <= 110 * STEP_TOKENS


def test_a_run_that_was_better_first_is_dated_from_when_it_became_worse(tmp_path):
    values = losses()
    found = pair(tmp_path, values, values + np.where(np.arange(200) < 96, -0.2, 0.2))
    assert found.verdict == "worse"
    assert 90 * STEP_TOKENS <= found.since_tokens <= 110 * STEP_TOKENS


def test_a_gap_that_only_the_whole_window_shows_is_not_dated(tmp_path):
    values = losses(seed=1)
    found = pair(tmp_path, values, values + np.random.default_rng(12).normal(0.03, 0.05, 200))
    assert found.verdict == "worse"
    assert found.since_tokens is None


def test_a_gap_that_closes_again_is_no_difference_at_the_end(tmp_path):
    values = losses()
    found = pair(tmp_path, values, values + np.where(np.arange(200) < 100, 0.2, 0.0))
    assert found.verdict == "no difference"
    assert found.since_tokens is None
    assert found.segments[0].gap.is_beyond_noise
    assert not found.segments[-1].gap.is_beyond_noise


def test_seeds_among_the_runs_measure_the_noise(tmp_path):
    far = [losses(seed=seed) + offset for seed, offset in ((1, 0.0), (2, 0.3), (3, -0.3))]
    folders = [write_run(tmp_path, f"seed{seed}", values, seed=seed) for seed, values in enumerate(far, start=1)]
    other = write_run(tmp_path, "other", losses(seed=1) + 0.1, seed=4, settings={"optimizer": {"lr": 0.1}})
    alone = compared(folders[0], other).pairs[0]
    assert alone.verdict == "worse"
    assert alone.judged["loss"].spread.measured_on == ()
    among = compared(folders[0], other, *folders[1:])
    assert among.pairs[0].verdict == "no difference"
    assert among.pairs[0].judged["loss"].spread.measured_on == ("seed1", "seed2", "seed3")
    assert among.pairs[1].judged["loss"].spread.measured_on == ("seed1", "seed2", "seed3"), (
        "seeds are the measure, the judged one too"
    )


def test_runs_of_other_batch_sizes_are_compared_at_equal_tokens(tmp_path):
    fine = losses(400, seed=1)
    coarse = fine.reshape(-1, 2).mean(1)
    found = pair(tmp_path, fine, coarse, step_tokens=2 * STEP_TOKENS)
    assert found.tokens == 400 * STEP_TOKENS
    assert found.verdict == "no difference"
    assert found.judged["loss"].gap.value == pytest.approx(0.0, abs=2e-3)


def test_a_longer_run_is_compared_over_what_both_have_and_that_is_said(tmp_path):
    values = losses(400)
    found = pair(tmp_path, values[:200], values)
    assert found.tokens == 200 * STEP_TOKENS
    assert found.judged["loss"].gap.value == 0.0
    [note] = found.notes
    says(note, "200k tokens", "b", "400k", "a")


def test_schedules_that_differ_are_told(tmp_path):
    (note,) = pair(
        tmp_path, losses(), losses(), settings={"max_steps": 900, "schedule": {"name": "wsd", "warmup_steps": 5}}
    ).notes
    says(note, "max_steps 200 and 900", "schedule.name cosine and wsd")


def test_losses_that_are_not_finite_are_told(tmp_path):
    values = losses()
    broken = values.copy()
    broken[50] = np.inf
    found = pair(tmp_path, values, broken)
    assert found.judged["loss"].gap.value == 0.0
    [note] = found.notes
    says(note, "b", "1 step", "not finite")


def test_a_run_of_a_few_steps_is_not_judged(tmp_path):
    found = pair(tmp_path, losses(), losses()[:5])
    assert found.judged == {}
    assert found.verdict == "cannot be judged"
    assert found.segments == []


def evaluated(values):
    return {step: {"val_loss": value, "bits_per_byte": value / 2} for step, value in values.items()}


def test_validation_losses_are_judged_by_themselves(tmp_path):
    folders = [
        write_run(tmp_path, name, losses(), evaluations=evaluated({100: 3.5, 180: 3.2 + gap, 200: 3.1 + gap}))
        for name, gap in (("a", 0.0), ("b", 0.2))
    ]
    judged = compared(*folders).pairs[0].judged
    assert judged["loss"].verdict == "no difference"
    assert judged["val_loss"].verdict == "worse"
    assert judged["val_loss"].gap.value == pytest.approx(0.2)
    says(judged["val_loss"].over, "2 evaluations", "200k tokens")
    assert judged["bits_per_byte"].gap.value == pytest.approx(0.1)


def test_evaluations_at_other_tokens_are_compared_in_between(tmp_path):
    a = write_run(tmp_path, "a", losses(), evaluations=evaluated({190: 3.0}))
    b = write_run(tmp_path, "b", losses(), evaluations=evaluated({180: 3.2, 200: 3.0}))
    judged = compared(a, b).pairs[0].judged["val_loss"]
    assert judged.b == pytest.approx(3.1)
    says(judged.over, "190k tokens")


def test_other_tokenizers_compare_in_bits_a_byte_of_the_same_text(tmp_path):
    a = write_run(tmp_path, "a", losses(), evaluations=evaluated({200: 3.0}))
    b = write_run(
        tmp_path,
        "b",
        2 * losses(),
        evaluations={200: {"val_loss": 6.0, "bits_per_byte": 1.8}},
        settings={"data": {"corpus": "plays", "tokenizer": "bytes"}},
    )
    found = compared(a, b).pairs[0]
    assert list(found.judged) == ["bits_per_byte"]
    assert found.verdict == "worse"
    assert found.segments == []
    says(found.notes[0], "tokenizers", "nats", "bits")


def test_other_tokenizers_on_other_text_cannot_be_judged(tmp_path):
    a = write_run(tmp_path, "a", losses(), evaluations=evaluated({200: 3.0}))
    b = write_run(
        tmp_path,
        "b",
        losses(),
        evaluations=evaluated({200: 3.0}),
        settings={"data": {"corpus": "poems", "tokenizer": "bytes"}},
    )
    found = compared(a, b).pairs[0]
    assert found.verdict == "cannot be judged"
    says(found.notes[0], "bits", "same text")


def test_other_training_data_leave_the_validation_loss_where_that_is_the_same(tmp_path):
    shards = {"train": ["more.bin"], "validation": ["held.bin"], "tokenizer": "gpt2"}
    a = write_run(
        tmp_path, "a", losses(), evaluations=evaluated({200: 3.0}), settings={"data": {**shards, "train": ["less.bin"]}}
    )
    b = write_run(tmp_path, "b", losses(), evaluations=evaluated({200: 2.5}), settings={"data": shards})
    found = compared(a, b).pairs[0]
    assert "loss" not in found.judged
    assert found.verdict == "better"
    says(found.notes[0], "data")


def test_other_held_out_data_leave_the_training_loss(tmp_path):
    a = write_run(tmp_path, "a", losses(), evaluations=evaluated({200: 3.0}))
    b = write_run(
        tmp_path, "b", losses(), evaluations=evaluated({200: 2.5}), settings={"evaluation": {"num_sequences": 9}}
    )
    found = compared(a, b).pairs[0]
    assert list(found.judged) == ["loss"]
    assert found.verdict == "no difference"
    [note] = found.notes
    says(note, "a", "b", "different data", "validation losses")


# Curves side by side


def curve_of(tmp_path, values, **facts):
    folder = write_run(tmp_path, "a", values, **facts)
    return read_curve(folder, len(values) * STEP_TOKENS / NUM_BINS)


def test_the_window_is_the_last_fifth_or_eight_steps(tmp_path):
    curve = curve_of(tmp_path / "long", losses())
    assert mean_loss(curve, end_span(curve)) == pytest.approx(losses()[160:].mean())
    short = curve_of(tmp_path / "short", losses(20))
    assert mean_loss(short, end_span(short)) == pytest.approx(losses(20)[12:].mean())
    assert end_span(curve_of(tmp_path / "tiny", losses(7))) is None
    assert end_span(curve) == Span(NUM_BINS - NUM_BINS // 5, NUM_BINS)


def test_losses_by_hours_have_no_row_in_which_no_run_has_a_step(tmp_path):
    curve = curve_of(tmp_path, losses(2))
    assert len(losses_by_hours([curve, curve], 8)) == 2


def test_losses_by_hours_are_at_equal_time(tmp_path):
    values = losses(80, noise=0.0)
    slow, fast = (
        curve_of(tmp_path / "slow", values, step_seconds=36.0),
        curve_of(tmp_path / "fast", values, step_seconds=18.0),
    )
    rows = losses_by_hours([slow, fast], 4)
    assert [hours for hours, _ in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rows[0][1] == pytest.approx([values[:10].mean(), values[:20].mean()])
    nameless = write_run(tmp_path / "without", "a", values, step_seconds=float("nan"))
    assert losses_by_hours([slow, read_curve(nameless, 1.0)], 4) == []


def test_the_time_to_a_loss_is_when_it_was_first_reached(tmp_path):
    curve = curve_of(tmp_path, np.linspace(5, 1, 101))
    assert hours_to_reach(curve, 3.0) == pytest.approx(
        0.55, abs=0.01
    )  # the mean of eight steps is there half of them later
    assert hours_to_reach(curve, 0.5) is None
