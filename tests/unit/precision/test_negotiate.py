import logging

import pytest

from tests.messages import logged, refuses, says
from tests.unit.model.tiny import tiny_model
from trainer.config.load import load
from trainer.config.schema import PrecisionConfig
from trainer.errors import PrecisionError
from trainer.precision.decide import Decision
from trainer.precision.measured import Measured
from trainer.precision.negotiate import negotiate, propose, uncompiled

EVERYWHERE = {"bf16_first_blocks": 0, "bf16_last_blocks": 0}


def settled(
    asked="fp8",
    *,
    ranks=lambda decision: [decision],
    model=lambda: tiny_model("llama"),
    micro_batch=2,
    measured=None,
    **wanted,
):
    sizes = {"micro_batch": micro_batch, "global_batch": micro_batch, "sequence_length": 32}
    settings = PrecisionConfig(**{**EVERYWHERE, **wanted})
    config = load("shakespeare").config.model_copy(update={**sizes, "precision": settings})
    return negotiate(propose(asked, config, "cpu", model, measured), settings, ranks)


def test_with_the_stand_in_fp8_is_settled_as_an_emulation(stand_in):
    assert settled().label == "fp8 emulation"


def test_the_model_is_only_made_where_fp8_is_possible():
    assert settled(model=lambda: pytest.fail("made")).mode == "bf16"
    assert settled("bf16", model=lambda: pytest.fail("made")).mode == "bf16"


def test_shapes_are_checked_with_their_names(stand_in):
    assert "bf16_first_blocks 2" in settled(bf16_first_blocks=2).reason
    decision = settled(recipe="mxfp8", model=lambda: tiny_model("llama", hidden_size=36, num_attention_heads=2))
    assert decision.mode == "bf16"
    assert "model.layers.0.self_attn.q_proj" in decision.reason


def test_another_rank_without_fp8_takes_it_from_this_one(stand_in):
    other = Decision("fp8", "bf16", "GPU 1 is A100")
    decision = settled(ranks=lambda mine: [mine, other])
    assert (decision.mode, decision.reason) == ("bf16", "on rank 1 GPU 1 is A100")


def test_a_fallback_that_is_refused_is_refused_on_every_rank_after_they_agreed(stand_in):
    with refuses(PrecisionError, "rank 1", "GPU 1 is A100"):
        settled(ranks=lambda mine: [mine, Decision("fp8", "bf16", "GPU 1 is A100")], required=True)


def test_a_block_that_does_nothing_is_told(caplog):
    with caplog.at_level(logging.INFO):
        settled("bf16", recipe="block")
    logged(caplog, "precision.recipe", "precision.bf16_first_blocks", "precision.bf16_last_blocks")


MEASURED = Measured("2026-11-25T10:00:00+00:00", {"current": 0.1, "delayed": 0.2, "block": -0.1})


def test_auto_takes_the_fastest_that_was_measured_and_the_sentence_says_so(stand_in):
    decision = settled(measured=MEASURED)
    assert decision.recipe == "delayed"
    assert decision.mode == "fp8"
    says(decision.sentence, "bench precision", "2026-11-25T10:00:00+00:00")


def test_without_a_measurement_or_with_one_of_no_fp8_auto_is_as_it_was(stand_in):
    for measured in (None, Measured("2026-11-25", {})):
        decision = settled(measured=measured)
        assert decision.recipe == "current"
        assert "measured" not in decision.sentence


def test_a_recipe_that_is_named_is_taken_whatever_was_measured(stand_in):
    decision = settled(measured=MEASURED, recipe="current")
    assert decision.recipe == "current"
    assert "measured" not in decision.sentence


def test_a_fallback_says_why_and_nothing_of_what_was_measured():
    decision = settled(measured=MEASURED)
    assert decision.mode == "bf16"
    assert "delayed scaling" in decision.sentence
    assert "measured" not in decision.sentence


def test_only_fp8_leaves_the_compiler_out():
    assert uncompiled(Decision("bf16", "bf16", "x")) is None
    assert "compiled" in uncompiled(Decision("fp8", "fp8", "x", recipe="delayed"))
