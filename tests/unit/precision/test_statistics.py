import math

import pytest
import torch

from tests.unit.precision.test_convert import converted_model, loss_and_gradients
from trainer.precision.recipes import RECIPES
from trainer.precision.statistics import FP8_MEANINGS, Statistics, fit, relative_gap

CURRENT, DELAYED, BLOCK, MXFP8, NVFP4 = (RECIPES[name] for name in ("current", "delayed", "block", "mxfp8", "nvfp4"))


def shares(values, recipe=CURRENT, scale=None):
    return tuple(number.item() for number in fit(torch.tensor(values), recipe, scale))


def test_the_largest_value_just_fits_and_what_is_far_below_it_becomes_zero():
    largest, underflow, overflow = shares([[448.0, 1.0, 2.0**-9, 2.0**-11]])
    assert (largest, underflow, overflow) == (448.0, 0.25, 0.0)


def test_a_zero_that_was_zero_is_no_underflow():
    assert shares([[0.0, 0.0]]) == (0.0, 0.0, 0.0)
    assert shares([[5.0, 0.0]])[1] == 0.0


def test_a_scale_from_steps_before_can_cut_off():
    largest, underflow, overflow = shares([[1000.0, 450.0, -2000.0, 1.0]], DELAYED, torch.tensor(1.0))
    assert (largest, overflow) == (2000.0, 0.5)


def test_block_scales_save_what_one_scale_loses():
    values = torch.cat([torch.full((1, 128), 1e3), torch.full((1, 128), 1e-4)], dim=1)
    assert fit(values, CURRENT)[1].item() == 0.5
    assert fit(values, BLOCK)[1].item() == fit(values, MXFP8)[1].item() == 0.0
    assert fit(values, MXFP8)[2].item() == 0.0


def test_a_width_that_is_no_multiple_of_the_block_is_one_block():
    assert fit(torch.tensor([[1e3, 1e-4, 1.0]]), MXFP8)[1].item() == pytest.approx(1 / 3)


def test_four_bits_lose_what_is_below_a_quarter_of_their_smallest_step():
    values = torch.full((1, 16), 0.2)
    values[0, 0] = 6.0
    assert fit(values, NVFP4)[1].item() == pytest.approx(15 / 16)


def test_statistics_are_taken_by_role_and_the_hooks_go_away(stand_in, tokens):
    model, converted, _ = converted_model(stand_in, "gpt2")
    roles = {name: name.rsplit(".", 1)[-1] for name in converted}
    statistics = Statistics(converted, roles, CURRENT)
    loss_and_gradients(model, tokens)
    statistics.stop()
    numbers = statistics.numbers()
    assert not any(layer._forward_pre_hooks for layer in converted.values())
    assert {tag.rsplit("/", 1)[0] + "/ROLE" for tag in numbers} == {
        tag for tag in FP8_MEANINGS if tag.endswith("/ROLE")
    }
    assert {tag.rsplit("/", 1)[1] for tag in numbers} == {"c_attn", "c_proj", "c_fc"}
    assert len(numbers) == 18
    weights = [layer.weight for name, layer in converted.items() if name.endswith("c_fc")]
    assert numbers["precision/amax_weight/c_fc"] == pytest.approx(max(weight.abs().max().item() for weight in weights))
    assert all(math.isfinite(value) for value in numbers.values())
    before = Statistics({}, {}, CURRENT)
    assert before.numbers() == {}


def test_delayed_scaling_is_measured_with_the_scales_it_has(stand_in, tokens):
    model, converted, _ = converted_model(stand_in, "gpt2", name="delayed")
    loss_and_gradients(model, tokens)
    for layer in converted.values():
        layer.fp8_meta["scaling_fwd"].scale[0] = 1e6
    statistics = Statistics(converted, dict.fromkeys(converted, "all"), DELAYED)
    loss_and_gradients(model, tokens)
    assert statistics.numbers()["precision/overflow_input/all"] > 0.2


@pytest.mark.parametrize(
    ("ours", "reference", "gap"),
    [
        (2.02, 2.0, 0.01),
        (1.98, 2.0, -0.01),
        (math.nan, 2.0, math.inf),
        (math.inf, 2.0, math.inf),
        (2.0, math.nan, 0.0),
        (2.0, 0.0, 0.0),
    ],
)
def test_the_gap_is_relative_and_no_number_in_fp8_is_infinitely_far(ours, reference, gap):
    assert relative_gap(ours, reference) == pytest.approx(gap)
