import pytest

from trainer.precision.decide import FP8_REASON, MODES, decide


@pytest.mark.parametrize(
    ("asked", "device_type", "has_bf16", "mode"),
    [
        ("no", "cpu", True, "no"), ("no", "cuda", True, "no"), ("no", "cuda", False, "no"),
        ("bf16", "cpu", True, "bf16"), ("bf16", "cuda", True, "bf16"), ("bf16", "cuda", False, "no"),
        ("fp16", "cpu", True, "no"), ("fp16", "cuda", True, "fp16"), ("fp16", "cuda", False, "fp16"),
        ("fp8", "cpu", True, "bf16"), ("fp8", "cuda", True, "bf16"), ("fp8", "cuda", False, "no"),
    ],
)  # fmt: skip
def test_the_precision_is_what_was_asked_where_it_can_be_had(asked, device_type, has_bf16, mode):
    decision = decide(asked, device_type=device_type, has_bf16=has_bf16)
    assert (decision.asked, decision.mode) == (asked, mode)
    assert len(decision.reason) > 10


@pytest.mark.parametrize("asked", MODES)
def test_a_decision_is_one_line_with_its_reason(asked):
    sentence = decide(asked, device_type="cpu", has_bf16=True).sentence
    assert sentence.startswith("precision: ") and "\n" not in sentence
    assert ("instead of" in sentence) == (decide(asked, device_type="cpu", has_bf16=True).mode != asked)


def test_a_decision_that_fell_twice_gives_both_reasons():
    reason = decide("fp8", device_type="cuda", has_bf16=False).reason
    assert FP8_REASON in reason and "this GPU has no bf16" in reason


def test_a_mode_that_is_none_is_a_mistake_in_the_program():
    with pytest.raises(AssertionError):
        decide("fp4", device_type="cpu", has_bf16=True)
