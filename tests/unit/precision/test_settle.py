import logging

import pytest

from tests.unit.model.tiny import tiny_model
from trainer.config.schema import PrecisionConfig
from trainer.errors import PrecisionError
from trainer.precision.decide import Decision
from trainer.precision.settle import settle, uncompiled

EVERYWHERE = {"bf16_first_blocks": 0, "bf16_last_blocks": 0}


def settled(asked="fp8", *, ranks=lambda decision: [decision], model=lambda: tiny_model("llama"), micro_batch=2, **wanted):
    return settle(
        asked, PrecisionConfig(**{**EVERYWHERE, **wanted}), device_type="cpu", micro_batch=micro_batch, sequence_length=32, model=model, gather=ranks
    )  # fmt: skip


def test_with_the_stand_in_fp8_is_settled_as_an_emulation(stand_in):
    assert settled().label == "fp8 emulation"


def test_the_model_is_only_made_where_fp8_is_possible():
    assert settled(model=lambda: pytest.fail("made")).mode == "bf16"
    assert settled("bf16", model=lambda: pytest.fail("made")).mode == "bf16"


def test_shapes_are_checked_with_their_names(stand_in):
    assert "bf16_first_blocks 2" in settled(bf16_first_blocks=2).reason
    decision = settled(recipe="mxfp8", model=lambda: tiny_model("llama", hidden_size=36, num_attention_heads=2))
    assert decision.mode == "bf16" and "model.layers.0.self_attn.q_proj" in decision.reason


def test_another_rank_without_fp8_takes_it_from_this_one(stand_in):
    other = Decision("fp8", "bf16", "GPU 1 is A100")
    decision = settled(ranks=lambda mine: [mine, other])
    assert (decision.mode, decision.reason) == ("bf16", "on rank 1 GPU 1 is A100")


def test_a_fallback_that_is_refused_is_refused_on_every_rank_after_they_agreed(stand_in):
    with pytest.raises(PrecisionError, match="on rank 1 GPU 1 is A100; mend that"):
        settled(ranks=lambda mine: [mine, Decision("fp8", "bf16", "GPU 1 is A100")], required=True)


def test_a_block_that_does_nothing_is_told(caplog):
    with caplog.at_level(logging.INFO):
        settled("bf16", recipe="block")
    assert "precision.recipe, precision.bf16_first_blocks, precision.bf16_last_blocks: without effect" in caplog.text


def test_only_fp8_leaves_the_compiler_out():
    assert uncompiled(Decision("bf16", "bf16", "x")) is None
    assert "compiled" in uncompiled(Decision("fp8", "fp8", "x", recipe="delayed"))
