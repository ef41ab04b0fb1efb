"""Two per cent on both sides, ties, and what is never recommended."""

import pytest

from tests.messages import says
from tests.unit.tools.bench.made import BF16, BLOCK, COMPILED, CURRENT, EMULATED, measured
from trainer.tools.bench.choose import Variant
from trainer.tools.bench.judge import compared, is_gain, judge


@pytest.mark.parametrize(("pace", "gains"), [(1020, True), (1019, False), (1000, False), (900, False)])
def test_two_per_cent_is_a_gain_and_less_is_none(pace, gains):
    ours, theirs = measured(CURRENT, pace), measured(BF16, 1000)
    assert is_gain(ours, theirs) is gains
    judgement = judge([theirs, ours])
    assert judgement.recommended == ("fp8 current" if gains else "bf16")
    assert judgement.gains["current"] == pytest.approx(pace / 1000 - 1)


def test_what_is_no_gain_is_called_that_with_its_figure():
    says(compared(measured(CURRENT, 1012), measured(COMPILED, 1000)), "no gain", "1.2%")
    sentence = judge([measured(BF16, 1000), measured(CURRENT, 1012)]).sentence
    says(sentence, "take bf16", "fp8 current", "no gain", "1.2%")


def test_a_machine_that_varies_by_more_needs_more_to_be_believed():
    ours, theirs = measured(CURRENT, 1050), measured(BF16, 1000, spread=0.06)
    assert not is_gain(ours, theirs)
    says(compared(ours, theirs), "no gain", "5.0%", "6.0%")
    assert judge([theirs, measured(CURRENT, 1070)]).recommended == "fp8 current"


def test_a_gain_is_one_over_the_fastest_bf16_and_says_what_to_write():
    judgement = judge([measured(BF16, 1000), measured(COMPILED, 1300), measured(CURRENT, 1200)])
    assert judgement.recommended == "bf16+compile"
    assert judgement.gains == {"current": pytest.approx(1200 / 1300 - 1)}
    says(
        judgement.sentence,
        "take bf16+compile",
        "30.0% more",
        "than bf16",
        "dynamo_config",
        "fp8 current",
        "7.7% fewer",
        "than bf16+compile",
    )
    judgement = judge([measured(BF16, 1000), measured(COMPILED, 1300), measured(BLOCK, 1430)])
    says(
        judgement.sentence,
        "take fp8 block",
        "10.0% more",
        "than bf16+compile",
        "mixed_precision: fp8",
        "precision.recipe=block",
    )


def test_a_compiled_recipe_counts_for_its_recipe_and_says_how_to_compile():
    judgement = judge(
        [measured(BF16, 1000), measured(CURRENT, 1100), measured(Variant("current", is_compiled=True), 1200)]
    )
    assert judgement.gains == {"current": pytest.approx(0.2)}
    assert judgement.recommended == "fp8 current+compile"
    says(judgement.sentence, "mixed_precision: fp8", "dynamo_config")


def test_compiling_that_gains_nothing_is_not_recommended():
    judgement = judge([measured(BF16, 1000), measured(COMPILED, 1010)])
    assert judgement.recommended == "bf16"
    says(judgement.sentence, "take bf16", "torch.compile", "no gain", "1.0%")
    says(judge([measured(BF16, 1000), measured(COMPILED, 800)]).sentence, "take bf16", "torch.compile", "20.0% fewer")


def test_of_two_equally_fast_the_first_is_taken():
    assert judge([measured(BF16, 1000), measured(CURRENT, 1100), measured(BLOCK, 1100)]).recommended == "fp8 current"
    assert judge([measured(BF16, 1000), measured(COMPILED, 1000)]).recommended == "bf16"


def test_a_variant_whose_loss_runs_away_is_neither_recommended_nor_kept_for_auto():
    judgement = judge([measured(BF16, 1000), measured(CURRENT, 2000, has_run_away=True), measured(BLOCK, 1100)])
    assert judgement.recommended == "fp8 block"
    assert judgement.gains.keys() == {"block"}


def test_an_emulation_is_neither_recommended_nor_kept_for_auto():
    judgement = judge([measured(BF16, 1000), measured(EMULATED, 2000)])
    assert (judgement.recommended, judgement.gains, judgement.sentence) == ("bf16", {}, "take bf16")


def test_without_bf16_nothing_is_recommended():
    judgement = judge([measured(BF16, 1000, has_run_away=True), measured(CURRENT, 2000)])
    assert judgement.recommended is None
    assert judgement.gains == {}
    says(judgement.sentence, "bf16")
