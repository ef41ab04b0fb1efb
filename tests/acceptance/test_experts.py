"""A run of a model with experts: killed and resumed it is the run that never was, and how its experts are loaded is drawn."""

import math

import pytest

from tests.events import events_of
from tests.launching import final_bytes, records, start, steps, train, wait_for_step, write_recipe
from tests.messages import line_of

EXPERTS = {
    "model_type": "qwen3_moe",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [0],
    "router_aux_loss_coef": 0.05,
}
VARIANT = {"model": {"config": EXPERTS}, "metrics": {"detail_every_steps": 6}}


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)])
def straight(request, tmp_path_factory):
    """The run that is never killed, what it said, and its number of processes."""
    recipe = write_recipe(tmp_path_factory.mktemp("straight"), **VARIANT)
    return recipe, train(recipe, num_processes=request.param), request.param


def test_a_killed_run_with_experts_equals_the_one_never_killed(straight, tmp_path):
    reference, _, num_processes = straight
    recipe = write_recipe(tmp_path, **VARIANT)
    run = start(recipe, num_processes=num_processes)
    wait_for_step(recipe, 13, run)
    run.kill()
    train(recipe, num_processes=num_processes)
    assert final_bytes(recipe) == final_bytes(reference)
    for field in ("loss", "grad_norm", "router/aux_loss"):
        assert [record[field] for record in steps(recipe)] == [record[field] for record in steps(reference)], field


def test_the_auxiliary_loss_and_the_load_of_each_layer_with_experts_are_written_and_drawn(straight):
    recipe, said, _ = straight
    of_steps = steps(recipe)
    assert all(1.5 < record["router/aux_loss"] < 4 for record in of_steps)
    looks = {record["step"]: record for record in of_steps if "router/load_least/block_01" in record}
    assert list(looks) == [6, 12, 18, 24]
    for record in looks.values():
        for block in ("block_01", "block_02"):
            least, most, entropy = (record[f"router/load_{what}/{block}"] for what in ("least", "most", "entropy"))
            assert 0 <= least <= 0.5 <= most <= 1, "of four experts each token sees two"
            assert math.log(2) / math.log(4) <= entropy <= 1
            # 8 sequences of 16 tokens, over micro-batches and processes
            assert least * 128 == pytest.approx(round(least * 128), abs=1e-3)
        assert "router/load_least/block_00" not in record, "the first layer has no experts"
    tags = events_of(recipe).Tags()["scalars"]
    assert {"router/aux_loss", "router/load_most/block_02", "router/load_entropy/block_01"} <= set(tags)
    line_of(said, "model", "active a token")
    line_of(said, "step 24/24", "aux loss")


def test_the_validation_loss_is_without_the_auxiliary_one(straight, tmp_path):
    recipe, _, num_processes = straight
    # The first step of both is taken from the same weights: what the coefficient adds is in the training loss alone.
    changes = {**VARIANT, "model": {"config": {**EXPERTS, "router_aux_loss_coef": 0.0}}, "max_steps": 1}
    other = write_recipe(tmp_path, **changes, schedule={"warmup_steps": 1})
    train(other, num_processes=num_processes)
    first, without = steps(recipe)[0], steps(other)[0]
    assert first["loss"] - without["loss"] == pytest.approx(0.05 * first["router/aux_loss"], abs=1e-5)
    assert without["router/aux_loss"] == pytest.approx(first["router/aux_loss"], rel=1e-6)
    assert all("router/aux_loss" not in record for record in records(recipe) if "val_loss" in record)
