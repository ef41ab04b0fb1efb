"""What is measured and what is not, and that a launch trains as the run does and does nothing else."""

import pytest

from tests.messages import says
from tests.unit.tools.bench.made import BF16, COMPILED
from trainer.config.load import load
from trainer.precision.decide import Decision
from trainer.tools.bench.choose import OUT_OF_REACH, Missing, Variant, choose, settings_for

NOT_HERE = "GPU 0 is NVIDIA H100, and it needs 10.0"


def decisions(**changes):
    """A Hopper GPU's, unless changed."""
    mode = {
        "bf16": "bf16",
        "current": "fp8",
        "delayed": "fp8",
        "block": "fp8",
        "mxfp8": "bf16",
        "nvfp4": "bf16",
    } | changes
    return {
        name: Decision("bf16" if name == "bf16" else "fp8", taken, NOT_HERE, recipe=name)
        for name, taken in mode.items()
    }


def chosen(decided, torch_version=(2, 13), no_compiler=None):
    return choose(decided, torch_version=torch_version, no_compiler=no_compiler)


def test_bf16_comes_first_and_each_recipe_that_the_machine_has_follows():
    variants, missing = chosen(decisions())
    assert [variant.name for variant in variants] == ["bf16", "bf16+compile", "fp8 current", "fp8 delayed", "fp8 block"]
    assert Missing("fp8 mxfp8", NOT_HERE) in missing
    assert Missing("fp8 nvfp4", NOT_HERE) in missing
    assert [each.name for each in missing if each.reason.startswith("not compiled: ")] == [
        f"fp8 {name}+compile" for name in ("current", "delayed", "block")
    ]


def test_fp8_is_compiled_where_the_versions_allow_it_and_delayed_never():
    variants, missing = chosen(decisions(), torch_version=(2, 14))
    assert [variant.name for variant in variants if variant.is_compiled] == [
        "bf16+compile",
        "fp8 current+compile",
        "fp8 block+compile",
    ]
    says(next(each.reason for each in missing if each.name == "fp8 delayed+compile"), "DelayedScaling", "compiled")


def test_without_a_compiler_nothing_is_compiled_and_the_reason_is_told():
    variants, missing = chosen(decisions(), torch_version=(2, 14), no_compiler="a C++ compiler (g++) is needed")
    assert not any(variant.is_compiled for variant in variants)
    assert missing[0] == Missing("bf16+compile", "not compiled: a C++ compiler (g++) is needed")
    assert Missing("fp8 current+compile", "not compiled: a C++ compiler (g++) is needed") in missing


def test_an_emulation_is_measured_under_its_own_name_and_never_called_fp8():
    emulated = {name: Decision("fp8", "fp8", "x", recipe=name, emulated=True) for name in ("current", "block")}
    variants, missing = chosen({**decisions(), **emulated}, torch_version=(2, 14))
    assert [variant.name for variant in variants if variant.is_emulated] == [
        "fp8 emulation current",
        "fp8 emulation block",
    ]
    assert "emulation" in next(each.reason for each in missing if each.name == "fp8 emulation current+compile")


def test_a_gpu_without_bf16_has_nothing_to_compare_with():
    variants, missing = chosen(decisions(bf16="no"))
    assert variants[0].recipe
    assert missing[0] == Missing("bf16", NOT_HERE)


@pytest.mark.parametrize("variant", [BF16, COMPILED, Variant("block")])
def test_a_launch_trains_as_the_run_does_and_does_nothing_else(variant):
    typed = [
        "checkpoint.mirror=s3://bucket/runs",
        "checkpoint.every_steps=5",
        "checkpoint.keep_every_steps=10",
        "checkpoint.keep_epochs=2",
    ]
    typed += [
        "checkpoint.every_minutes=1",
        "checkpoint.every_tokens=5",
        "resume_from_checkpoint=best",
        "profile.steps=[2,5]",
        "precision.recipe=delayed",
    ]
    typed += ["evaluation.tasks_every_steps=280", "precision.bf16_first_blocks=0"]
    before, after = (
        load("shakespeare", [*typed, *more]).config
        for more in ([], settings_for(load("shakespeare", typed).config, variant))
    )
    assert after.max_steps == OUT_OF_REACH == after.evaluation.every_steps
    assert after.evaluation.tasks == []
    checkpoint = after.checkpoint
    assert checkpoint.max_lost_work_seconds == float("inf")
    assert not checkpoint.asynchronous
    assert checkpoint.mirror is None
    assert (
        checkpoint.every_steps,
        checkpoint.every_minutes,
        checkpoint.every_tokens,
        checkpoint.keep_every_steps,
        checkpoint.keep_epochs,
    ) == (None,) * 4 + (0,)
    assert after.metrics.trackers == []
    assert after.profile.steps is None
    assert after.resume_from_checkpoint == "none"
    assert after.precision.recipe == (variant.recipe or "delayed")
    assert after.precision.required == bool(variant.recipe)
    assert after.precision.bf16_first_blocks == 0
    same = (
        "seed",
        "global_batch",
        "micro_batch",
        "sequence_length",
        "deterministic",
        "data",
        "model",
        "optimizer",
        "schedule",
    )
    assert all(getattr(before, name) == getattr(after, name) for name in same)


def test_a_run_that_is_longer_than_a_launch_ever_is_keeps_its_length():
    assert f"max_steps={2 * OUT_OF_REACH}" in settings_for(
        load("shakespeare", [f"max_steps={2 * OUT_OF_REACH}"]).config, BF16
    )


def test_a_variants_name_is_part_of_a_files_name():
    assert Variant("current", is_compiled=True).word == "fp8-current-compile"
