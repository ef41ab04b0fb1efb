"""Whatever the facts are, a decision is honest; whatever a tensor is, its shares are shares."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.schema import PrecisionConfig
from trainer.precision.decide import MODES, Facts, agree, decide, lacking
from trainer.precision.recipes import RECIPES, recipe_of
from trainer.precision.statistics import fit

PAIRS = st.tuples(st.integers(7, 13), st.integers(0, 9))
RECIPE_NAMES = st.sampled_from(["auto", *RECIPES])


@st.composite
def facts(draw):
    is_gpu, problem = draw(st.booleans()), draw(st.none() | st.just("it cannot be imported"))
    gpu = {"gpu": "X", "capability": draw(PAIRS), "cuda": draw(st.none() | PAIRS)} if is_gpu else {}
    return Facts(
        "cuda" if is_gpu else "cpu",
        has_bf16=draw(st.booleans()) or not is_gpu,
        **gpu,
        backend="B",
        emulated=draw(st.booleans()),
        problem=problem,
        probe_error=0.04,
    )


@given(st.sampled_from(MODES), facts(), RECIPE_NAMES)
def test_fp8_is_only_ever_said_where_everything_for_it_is_there(asked, known, recipe):
    decision = decide(asked, known, PrecisionConfig(recipe=recipe))
    possible = known.problem is None and lacking(recipe_of(recipe, known.capability), known) is None
    assert (decision.mode == "fp8") == (asked == "fp8" and possible)
    assert (decision.label == "fp8") == (decision.mode == "fp8" and not known.emulated)
    if asked == "fp8" and not possible:
        assert decision.mode == ("bf16" if known.has_bf16 else "no")
    assert decision.mode != "fp16" or asked == "fp16"


@given(st.lists(facts(), min_size=1, max_size=4), RECIPE_NAMES)
def test_ranks_agree_on_what_each_of_them_can_do(known, recipe):
    decisions = [decide("fp8", each, PrecisionConfig(recipe=recipe)) for each in known]
    agreed = agree(decisions)
    assert all(MODES.index(agreed.mode) <= MODES.index(decision.mode) for decision in decisions)
    if agreed.mode == "fp8" and not any(each.emulated for each in known):
        assert all(lacking(RECIPES[agreed.recipe], each) is None for each in known)


@settings(max_examples=50)
@given(
    st.sampled_from(list(RECIPES.values())),
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.integers(1, 3),
)
def test_shares_are_shares_and_nothing_is_cut_off_by_its_own_scale(recipe, values, rows):
    largest, underflow, overflow = fit(torch.tensor([values] * rows), recipe)
    assert largest.item() == max(abs(value) for value in values)
    assert 0.0 <= underflow.item() <= 1.0
    assert overflow.item() == 0.0
