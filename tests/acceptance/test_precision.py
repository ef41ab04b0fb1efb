"""Whole runs under mixed_precision fp8, with a stand-in for TransformerEngine that rounds as fp8 does and is called an emulation.

What only a GPU can show (speed, real fp8) is in tests/gpu; here it is wiring, bookkeeping and checkpoints.
"""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from transformers import AutoModelForCausalLM

from tests import emulation
from tests.events import events_of
from tests.launching import (
    TINY_GPT2,
    TINY_LLAMA,
    checkpoint,
    final_bytes,
    outcome,
    records,
    steps,
    wait_for_step,
    write_recipe,
)
from tests.messages import line_of, names, says
from trainer.config.load import load
from trainer.journal import precisions, read_events
from trainer.metrics.tags import drawn
from trainer.precision.measured import store
from trainer.run.identity import speed_conditions

WHOLE = {"bf16_first_blocks": 0, "bf16_last_blocks": 0}
SHORT = {
    "max_steps": 8,
    "checkpoint": {"every_steps": 4},
    "evaluation": {"every_steps": 8, "sample_tokens": 0},
    "schedule": {"warmup_steps": 0},
}
FAMILIES = {"gpt2": TINY_GPT2, "llama": TINY_LLAMA}

ONE_IS_LONG = ["gpt2", pytest.param("llama", marks=pytest.mark.long)]
"""Where what is tested is the same mechanism in both, the fast set has one of them."""


def recipe_of(folder, family="gpt2", precision=None, **changes):
    folder.mkdir(exist_ok=True)
    return write_recipe(
        folder, model={"config": FAMILIES[family]}, precision={**WHOLE, **(precision or {})}, **{**SHORT, **changes}
    )


def fp8_charts(recipe):
    """TensorBoard's charts about fp8 by title: whether anything is drawn in them."""
    layout = Layout.FromString(events_of(recipe).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    tags = {tag for record in records(recipe) for tag in drawn(record)}
    charts = [chart for category in layout.category for chart in category.chart if chart.title.startswith("fp8: ")]
    return {
        chart.title: any(re.search(pattern, tag) for pattern in chart.multiline.tag for tag in tags) for chart in charts
    }


def manifest(recipe, step):
    return json.loads((checkpoint(recipe, step) / "manifest.json").read_text())


# Called in each rank before it runs


def stand_in_on_rank_0_only() -> None:
    if os.environ.get("RANK", "0") == "0":
        emulation.install()


def loss_gap_that_stays() -> None:
    from trainer.precision import fp8_monitor

    emulation.install()
    fp8_monitor.relative_gap = lambda *_: 1.0


def compiled_and_with_settings_that_nobody_reads() -> None:
    emulation.install()
    os.environ.update(ACCELERATE_DYNAMO_BACKEND="inductor", ACCELERATE_FP8_AMAX_HISTORY_LENGTH="7")


def gradients_that_overflow_in_fp8() -> None:
    from trainer import loop

    emulation.install()
    accumulate = loop.accumulate_gradients

    def overflowing(run, batch):
        loss = accumulate(run, batch)
        if run.precision.record.mode == "fp8" and run.progress.step >= 2:
            for parameter in run.bare_model.parameters():
                parameter.grad.fill_(float("inf"))
        return loss

    loop.accumulate_gradients = overflowing


def no_memory_in_the_warm_up() -> None:
    from trainer.run import begin

    emulation.install()
    begin.warm_up = _run_out


def no_memory_once_back_in_bf16() -> None:
    from trainer import loop

    loss_gap_that_stays()
    accumulate = loop.accumulate_gradients
    loop.accumulate_gradients = lambda run, batch: _run_out() if run.progress.step == 3 else accumulate(run, batch)


def _run_out(*_):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory.")


def accelerate_that_replaces_layers() -> None:
    """Brings back what `hide` keeps Accelerate from."""
    from trainer.precision import convert

    emulation.install()
    convert.hide = lambda model: None


def no_context() -> None:
    """The layers' own context is empty, as if only Accelerate's were there, and that is not around a sharded model."""
    from trainer.precision import fp8_model

    emulation.install()
    import transformer_engine.pytorch as te

    class Empty(fp8_model.Switch):
        def context(self):
            return te.autocast(enabled=False, recipe=self.made)

    fp8_model.Switch = Empty  # the probe before it has the true one


def weights_that_must_be_kept() -> None:
    """Asserts in every step that fp8 copies of the weights were made for the first of four micro-batches and used by the others."""
    from trainer.precision.fp8_monitor import Fp8Monitor

    emulation.install()
    import transformer_engine.pytorch as te

    end = Fp8Monitor.end

    def checked(monitor, *arguments):
        flags = [ran.first_micro_batch for ran in te.RAN if ran.first_micro_batch is not None]
        assert flags == [True] * 8 + [False] * 24, flags
        te.RAN.clear()
        return end(monitor, *arguments)

    Fp8Monitor.end = checked


# Tests


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_with_the_stand_in_says_in_every_place_what_it_is(tmp_path, family):
    recipe = recipe_of(tmp_path, family, {"statistics_every_steps": 4, "shadow_every_steps": 4})
    text = emulation.train(recipe)
    line_of(text, "precision: fp8 emulation", "current scaling, hybrid", "tests' emulation")
    assert "this is NOT fp8" in text
    line_of(text, "100.0%", "linear arithmetic")
    facts = manifest(recipe, 8)
    assert facts["precision"] == "fp8 emulation"
    assert facts["precision_facts"]["recipe"] == "current"
    assert facts["precision_facts"]["block_fraction"] == 1.0
    assert 0.5 < facts["precision_facts"]["matmul_fraction"] < 0.8
    assert {record["precision/fp8_coverage"] for record in steps(recipe) if "precision/fp8_coverage" in record} == {0.0}
    with_statistics = [record["step"] for record in steps(recipe) if "precision/underflow_input/mlp_down" in record]
    compared = {
        record["step"]: record["precision/loss_gap"] for record in steps(recipe) if "precision/loss_gap" in record
    }
    assert with_statistics == [4, 8]
    assert compared.keys() == {4, 8}
    assert all(abs(gap) < 0.02 for gap in compared.values())
    events = read_events(tmp_path / "runs" / "tiny")
    assert [event["precision"] for event in events if event["event"] == "start"] == ["fp8 emulation"]
    assert len(fp8_charts(recipe)) == 5
    assert all(fp8_charts(recipe).values())


@pytest.mark.parametrize(
    ("before", "precision"),
    [
        (None, {}),
        (emulation.install, {"statistics_every_steps": 0}),
        (emulation.install, {"statistics_every_steps": 100}),
    ],
)
def test_a_chart_about_fp8_that_would_stay_empty_is_not_there(tmp_path, before, precision):
    recipe = recipe_of(tmp_path, precision=precision, max_steps=1)
    emulation.train(recipe, before=before)
    assert fp8_charts(recipe) == {"fp8: share of the arithmetic (0..1)": True}


def test_without_a_gpu_fp8_is_bf16_with_its_reason_and_the_same_run(tmp_path):
    recipe, plain = recipe_of(tmp_path / "a"), recipe_of(tmp_path / "b")
    text = emulation.train(recipe, before=None)
    line_of(text, "precision: bf16", "fp8", "current scaling, hybrid", "no CUDA device", "nothing runs in fp8")
    says(emulation.train(plain, precision="bf16", before=None), "without effect", "bf16")
    assert final_bytes(recipe, 8) == final_bytes(plain, 8)
    assert manifest(recipe, 8)["precision"] == "bf16"
    assert manifest(recipe, 8)["precision_facts"]["asked"] == "fp8"
    assert {record["precision/fp8_coverage"] for record in steps(recipe) if "precision/fp8_coverage" in record} == {0.0}
    assert not any("precision/fp8_coverage" in record for record in steps(plain))


def test_a_fallback_that_is_refused_ends_before_the_first_step(tmp_path):
    recipe = recipe_of(tmp_path, precision={"required": True})
    text = emulation.train(recipe, before=None, exit_code=2)
    line_of(text, "precision.required", "fp8", "current scaling, hybrid", "no CUDA device")
    assert outcome(recipe)["outcome"] == "refused"


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ({"recipe": "block"}, ["precision.recipe", "'block'", "transformer.h.0.attn.c_attn"]),
        ({"bf16_first_blocks": 2}, ["2 blocks"]),
    ],
)
def test_shapes_that_do_not_fit_are_told_by_name(tmp_path, precision, words):
    text = emulation.train(recipe_of(tmp_path, precision=precision, max_steps=1))
    line_of(text, "precision: bf16", "fp8")
    says(text, *words)


def test_an_option_that_would_be_dropped_is_refused(tmp_path):
    recipe = recipe_of(tmp_path, precision={"recipe": "delayed", "options": {"interval": 2}})
    says(emulation.train(recipe, exit_code=2), "precision.options.interval")


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        (accelerate_that_replaces_layers, "not the model that was built: the head is no longer tied"),
        (no_context, "layers did not compute in fp8 in the warm-up"),
    ],
)
def test_what_accelerate_does_without_a_word_ends_the_run_before_its_first_step(tmp_path, sabotage, words):
    text = emulation.train(recipe_of(tmp_path), before=sabotage, exit_code=2)
    assert words in text


def test_statistics_comparisons_and_kept_weights_change_no_bit(tmp_path):
    busy = recipe_of(
        tmp_path / "a", precision={"statistics_every_steps": 1, "shadow_every_steps": 1, "cache_weights": True}
    )
    quiet = recipe_of(
        tmp_path / "b", precision={"statistics_every_steps": 0, "shadow_every_steps": 0, "cache_weights": False}
    )
    emulation.train(busy)
    emulation.train(quiet)
    assert final_bytes(busy, 8) == final_bytes(quiet, 8)


def test_fp8_weights_are_kept_over_the_micro_batches_of_a_step(tmp_path):
    emulation.train(recipe_of(tmp_path, max_steps=3), before=weights_that_must_be_kept)


@pytest.mark.parametrize("family", ONE_IS_LONG)
def test_a_killed_run_in_fp8_is_resumed_to_the_last_bit(tmp_path, family):
    reference, recipe = recipe_of(tmp_path / "a", family), recipe_of(tmp_path / "b", family)
    emulation.train(reference)
    run = emulation.start(recipe)
    wait_for_step(recipe, 6, run)
    run.kill()
    emulation.train(recipe)
    assert final_bytes(recipe, 8) == final_bytes(reference, 8)
    assert [record["loss"] for record in steps(recipe)] == [record["loss"] for record in steps(reference)]


@pytest.mark.parametrize("family", ONE_IS_LONG)
def test_a_run_goes_from_fp8_to_bf16_and_back_by_the_cluster_file_alone(tmp_path, family):
    constant = {"schedule": {"name": "constant", "warmup_steps": 0}}
    recipe, plain = (recipe_of(tmp_path / name, family, **constant) for name in "ab")
    parts: set[str] = set()
    for max_steps, precision, label in ((4, "fp8", "fp8 emulation"), (6, "bf16", "bf16"), (8, "fp8", "fp8 emulation")):
        text = emulation.train(recipe, f"max_steps={max_steps}", precision=precision)
        parts |= manifest(recipe, max_steps)["state"].keys()
        assert not [part for part in parts if repr(part) in text], "no part of the state is missing, and none left over"
        assert manifest(recipe, max_steps)["precision"] == label
    assert "precision bf16 -> fp8 emulation" in text
    emulation.train(plain, precision="bf16")
    assert [record["data_digest"] for record in steps(recipe)] == [record["data_digest"] for record in steps(plain)]
    for ours, theirs in zip(steps(recipe), steps(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    mixed, reference = (load_file(checkpoint(each, 8) / "model.safetensors") for each in (recipe, plain))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in mixed.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in reference.items()
    }


@pytest.mark.parametrize("family", ONE_IS_LONG)
def test_an_export_of_an_fp8_run_has_its_weights_in_the_form_of_a_bf16_runs(tmp_path, family):
    exported = {}
    for precision in ("fp8", "bf16"):
        recipe = recipe_of(tmp_path / precision, family, max_steps=2)
        emulation.train(recipe, precision=precision)
        folder = tmp_path / precision / "runs" / "tiny" / "exported"
        tensors, stored = (
            load_file(folder / "model.safetensors"),
            load_file(checkpoint(recipe, 2) / "model.safetensors"),
        )
        assert tensors
        assert all(torch.equal(tensor, stored[name][: len(tensor)]) for name, tensor in tensors.items())
        exported[precision] = (
            {path.name for path in folder.iterdir()},
            {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
            json.loads((folder / "config.json").read_text()),
        )
        AutoModelForCausalLM.from_pretrained(folder)
    assert exported["fp8"] == exported["bf16"]


def test_a_loss_that_stays_above_bf16s_takes_the_run_back_to_bf16_over_a_restart(tmp_path):
    recipe = recipe_of(tmp_path, precision={"shadow_every_steps": 1})
    text = emulation.train(recipe, "max_steps=4", before=loss_gap_that_stays)
    assert "precision: bf16 from step 4 on" in text
    facts = manifest(recipe, 4)
    assert facts["precision"] == "bf16"
    assert facts["precision_facts"]["bf16_since_step"] == 3
    assert facts["state"]["precision"]["switched_at"] == 3
    assert [
        (event["step"], event["mode"])
        for event in read_events(tmp_path / "runs" / "tiny")
        if event["event"] == "precision"
    ] == [(3, "bf16")]
    says(emulation.train(recipe, "max_steps=6"), "went back", "step 3")
    assert manifest(recipe, 6)["precision"] == "bf16"
    assert "precision/loss_gap" not in steps(recipe)[-1]
    says(manifest(recipe, 6)["precision_facts"]["sentence"], "went back", "step 3")
    assert precisions(read_events(tmp_path / "runs" / "tiny")) == ["fp8 emulation", "bf16"]
    emulation.train(recipe, "max_steps=7", precision="bf16")
    emulation.train(recipe, "max_steps=8")
    assert manifest(recipe, 8)["precision"] == "fp8 emulation"
    texts = [
        event.tensor_proto.string_val[0].decode() for event in events_of(recipe).Tensors("run/precision/text_summary")
    ]
    assert [names(text, "went back", "step 3") for text in texts] == [False, True, False, False]
    assert precisions(read_events(tmp_path / "runs" / "tiny")) == ["fp8 emulation", "bf16", "fp8 emulation"]


def test_a_run_that_ends_before_it_is_back_in_bf16_has_not_computed_in_it(tmp_path):
    recipe = recipe_of(tmp_path, safety={"max_bad_steps": 2}, max_steps=4)
    assert "precision: bf16 from step 6 on" in emulation.train(recipe, before=gradients_that_overflow_in_fp8)
    assert precisions(read_events(tmp_path / "runs" / "tiny")) == ["fp8 emulation"]
    emulation.train(recipe, "max_steps=6", before=gradients_that_overflow_in_fp8)
    assert [record["grad_norm"] is None for record in steps(recipe)] == [False, False, True, True, True, False]
    assert precisions(read_events(tmp_path / "runs" / "tiny")) == ["fp8 emulation", "bf16"]


def test_gradients_that_overflow_in_fp8_take_the_run_to_bf16_instead_of_ending_it(tmp_path):
    recipe = recipe_of(
        tmp_path, precision={"shadow_every_steps": 1}, safety={"max_bad_steps": 2}, checkpoint={"every_steps": 1}
    )
    text = emulation.train(recipe, before=gradients_that_overflow_in_fp8, num_processes=2)
    line_of(text, "precision: bf16", "step 6", "2 steps", "not finite")
    assert [record["grad_norm"] is None for record in steps(recipe)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert outcome(recipe)["outcome"] == "finished"
    assert manifest(recipe, 8)["precision"] == "bf16"
    assert not checkpoint(recipe, 5).exists()
    assert manifest(recipe, 6)["state"]["precision"]["switched_at"] == 5


@pytest.mark.parametrize(("before", "mode"), [(no_memory_in_the_warm_up, "fp8"), (no_memory_once_back_in_bf16, "bf16")])
def test_a_run_without_memory_says_in_which_precision_it_ran_out(tmp_path, before, mode):
    text = emulation.train(
        recipe_of(tmp_path, precision={"shadow_every_steps": 1}), before=before, exit_code=1 if mode == "bf16" else 2
    )
    line_of(text, "rank 0", mode, "CUDA out of memory", "micro_batch=1")
    assert ("precision.cache_weights=false" in text) == (mode == "fp8")


def test_two_ranks_compute_in_fp8_together(tmp_path):
    recipe, alone = (
        recipe_of(tmp_path / "a", precision={"shadow_every_steps": 4}),
        recipe_of(tmp_path / "b", precision={"shadow_every_steps": 4}),
    )
    text = emulation.train(recipe, num_processes=2)
    emulation.train(alone)
    assert "precision: fp8 emulation" in text
    assert [record["step"] for record in steps(recipe)] == list(range(1, 9))
    assert steps(recipe)[0]["loss"] == pytest.approx(steps(alone)[0]["loss"], rel=0.01)
    assert "precision/loss_gap" in steps(recipe)[3]


def test_what_is_left_out_is_told_once_and_not_by_every_rank(tmp_path):
    text = emulation.train(
        recipe_of(tmp_path, max_steps=1), num_processes=2, before=compiled_and_with_settings_that_nobody_reads
    )
    assert text.count("torch.compile is left out") == text.count("fp8_config.amax_history_length") == 1


@pytest.mark.parametrize("name", ["current", "delayed"])
def test_one_rank_without_fp8_takes_it_from_both(tmp_path, name):
    recipe = recipe_of(tmp_path, precision={"recipe": name}, max_steps=2)
    text = emulation.train(recipe, num_processes=2, before=stand_in_on_rank_0_only)
    line_of(text, "precision: bf16", "fp8", "rank 1", "no CUDA device")


def test_delayed_scaling_trains_with_a_warning(tmp_path):
    text = emulation.train(
        recipe_of(tmp_path, precision={"recipe": "delayed", "options": {"amax_history_len": 16}}, max_steps=3),
        num_processes=2,
    )
    line_of(text, "delayed scaling", "checkpoint")
    assert "finished" in json.dumps(outcome(tmp_path / "tiny.yaml"))


@pytest.fixture
def measured_before():
    """Stores what a measurement of a recipe on this machine found, with the stand-in installed."""

    def put(recipe, gains, num_processes=1):
        emulation.install()
        config = load(str(recipe)).config
        return store(
            recipe.parent / "runs", speed_conditions(config, num_processes, torch.device("cpu")), "2026-11-25", gains
        )

    yield put
    emulation.uninstall()


def test_auto_takes_what_was_measured_for_such_a_run_on_every_rank(tmp_path, measured_before):
    recipe = recipe_of(tmp_path, max_steps=1)
    measured_before(recipe, {"current": 0.1, "delayed": 0.2}, num_processes=2)
    text = emulation.train(recipe, num_processes=2)
    line_of(text, "delayed scaling, hybrid", "tests' emulation")
    assert text.count("bench precision on 2026-11-25") == 1
    assert manifest(recipe, 1)["precision_facts"]["recipe"] == "delayed"


def test_what_was_measured_for_another_run_is_not_taken_and_neither_is_a_broken_file(tmp_path, measured_before):
    recipe = recipe_of(tmp_path, max_steps=1)
    path = measured_before(recipe, {"delayed": 0.2})
    text = emulation.train(recipe, "micro_batch=4")
    assert "current scaling" in text
    assert "2026-11-25" not in text
    path.write_text("{")
    text = emulation.train(recipe, "max_steps=2")
    assert "current scaling" in text
    line_of(text, path.name)
    assert "2026-11-25" not in text


@pytest.mark.parametrize(("gain", "warns"), [(-0.07, True), (0.05, False)])
def test_fp8_that_was_measured_to_gain_nothing_runs_with_a_warning_that_has_the_figure(
    tmp_path, measured_before, gain, warns
):
    recipe = recipe_of(tmp_path, max_steps=1)
    measured_before(recipe, {"current": gain})
    text = emulation.train(recipe)
    assert names(text, "current scaling", "0.93x") is warns
    assert manifest(recipe, 1)["precision"] == "fp8 emulation"
