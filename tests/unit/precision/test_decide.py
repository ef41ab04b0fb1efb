import dataclasses
import json

import pytest

from tests.messages import refuses, says
from trainer.config.cluster_keys import MODES
from trainer.config.schema import PrecisionConfig
from trainer.errors import PrecisionError
from trainer.precision.decide import NO_DEVICE, Facts, agree, check_required, decide, idle_settings, tf32_sentence
from trainer.precision.recipes import RECIPES

CPU = Facts("cpu", has_bf16=True)
BACKEND = "TransformerEngine 2.20.2"


def gpu(name, capability, *, has_bf16=True, cuda=(13, 0), error=0.04, problem=None):
    return Facts(
        "cuda",
        has_bf16,
        gpu=name,
        capability=capability,
        cuda=cuda,
        backend=BACKEND,
        problem=problem,
        probe_error=error,
    )


H100, A100, ADA, T4 = gpu("H100", (9, 0)), gpu("A100", (8, 0)), gpu("L40S", (8, 9)), gpu("T4", (7, 5), has_bf16=False)
B200, B300, CONSUMER = gpu("B200", (10, 0)), gpu("B300", (10, 3)), gpu("RTX 5090", (12, 0))
EMULATION = dataclasses.replace(CPU, backend="an emulation", emulated=True, probe_error=0.04)
NOT_INSTALLED = gpu("H100", (9, 0), problem="TransformerEngine is not installed", error=None)

SITUATIONS = [
    # asked, facts, recipe, the mode, what the reason says
    ("no", CPU, "auto", "no", "cluster file"),
    ("no", T4, "auto", "no", "cluster file"),
    ("bf16", CPU, "auto", "bf16", "cluster file"),
    ("bf16", H100, "mxfp8", "bf16", "cluster file"),
    ("bf16", T4, "auto", "no", "no bf16 arithmetic"),
    ("fp16", CPU, "auto", "no", "no fp16"),
    ("fp16", T4, "auto", "fp16", "cluster file"),
    ("fp8", CPU, "auto", "bf16", NO_DEVICE),
    ("fp8", CPU, "delayed", "bf16", NO_DEVICE),
    (
        "fp8",
        A100,
        "auto",
        "bf16",
        ("A100", "8.0", "precision.recipe 'current'", "8.9"),
    ),
    ("fp8", T4, "auto", "no", ("8.9", "no bf16")),
    ("fp8", ADA, "auto", "fp8", ("current scaling, hybrid", "TransformerEngine 2.20.2", "L40S")),
    ("fp8", ADA, "block", "bf16", "needs 9.0"),
    ("fp8", H100, "auto", "fp8", "current scaling, hybrid"),
    ("fp8", H100, "delayed", "fp8", "delayed scaling, hybrid"),
    ("fp8", H100, "block", "fp8", "block scaling, e4m3"),
    ("fp8", H100, "mxfp8", "bf16", "needs 10.0"),
    ("fp8", H100, "nvfp4", "bf16", "needs 10.0"),
    (
        "fp8",
        gpu("H100", (9, 0), cuda=(12, 8)),
        "block",
        "bf16",
        ("CUDA 12.8", "precision.recipe 'block'", "CUDA 12.9"),
    ),
    ("fp8", gpu("H100", (9, 0), cuda=None), "block", "bf16", "no CUDA"),
    ("fp8", B200, "auto", "fp8", "MXFP8 block scaling, e4m3"),
    ("fp8", B300, "auto", "fp8", "MXFP8 block scaling, e4m3"),
    ("fp8", B200, "current", "fp8", "current scaling"),
    ("fp8", B200, "nvfp4", "fp8", "NVFP4 block scaling"),
    ("fp8", CONSUMER, "auto", "fp8", "current scaling"),
    ("fp8", CONSUMER, "mxfp8", "bf16", ("below 12.0", "precision.recipe=current")),
    ("fp8", NOT_INSTALLED, "auto", "bf16", "TransformerEngine is not installed"),
    ("fp8", gpu("H100", (9, 0), problem="TransformerEngine 2.20.2 says: no"), "auto", "bf16", "says: no"),
    ("fp8", EMULATION, "auto", "fp8", ("emulation", "4.0%", "NOT fp8")),
    ("fp8", dataclasses.replace(EMULATION, problem="a small layer was off"), "auto", "bf16", "a small layer was off"),
]


@pytest.mark.parametrize(("asked", "facts", "recipe", "mode", "words"), SITUATIONS)
def test_a_situation_has_one_precision_and_its_reason(asked, facts, recipe, mode, words):
    decision = decide(asked, facts, PrecisionConfig(recipe=recipe))
    assert (decision.asked, decision.mode) == (asked, mode)
    says(decision.reason, *([words] if isinstance(words, str) else words))


@pytest.mark.parametrize(("asked", "facts", "recipe", "mode", "words"), SITUATIONS)
def test_a_decision_is_one_honest_line_and_plain_data(asked, facts, recipe, mode, words):
    decision = decide(asked, facts, PrecisionConfig(recipe=recipe))
    assert decision.sentence.startswith("precision: ")
    assert "\n" not in decision.sentence
    assert ("instead of" in decision.sentence) == (mode != asked)
    assert ("nothing runs in fp8" in decision.sentence) == (asked == "fp8" and mode != "fp8")
    if mode != "fp8":
        assert not decision.sentence.startswith("precision: fp8")
        assert decision.label == mode
    content = json.loads(json.dumps(decision.as_json()))
    assert content["mode"] == mode
    assert content["sentence"] == decision.sentence


def test_an_emulation_is_never_called_fp8():
    decision = decide("fp8", EMULATION)
    assert decision.label == "fp8 emulation"
    assert decision.sentence.startswith("precision: fp8 emulation, ")
    assert decision.backend == "an emulation"
    assert decision.emulated


def test_shapes_that_leave_nothing_for_fp8_are_a_fallback_with_their_reason():
    decision = decide("fp8", H100, misfit="no layer fits")
    assert decision.mode == "bf16"
    assert decision.reason == "no layer fits"


def test_a_format_that_the_recipe_lacks_is_refused_by_name():
    with refuses(PrecisionError, "precision.format", "'hybrid'", "precision.recipe", "'nvfp4'", "e4m3"):
        decide("fp8", CPU, PrecisionConfig(recipe="nvfp4", format="hybrid"))
    assert decide("fp8", H100, PrecisionConfig(format="e4m3")).format == "e4m3"


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("delayed", "interval"),
        ("delayed", "override_linear_precision"),
        ("delayed", "amax_hist_len"),
        ("current", "amax_history_len"),
        ("current", "use_power_2_scales"),
        ("mxfp8", "fp8_dpa"),
        ("nvfp4", "amax_compute_algo"),
        ("block", "margin"),
    ],
)
def test_an_option_that_would_be_dropped_is_refused_even_where_fp8_cannot_be_had(recipe, option):
    with refuses(PrecisionError, f"precision.options.{option}", "precision.recipe", f"'{recipe}'"):
        decide("fp8", CPU, PrecisionConfig(recipe=recipe, options={option: 1}))


def test_an_option_of_the_recipe_is_taken():
    assert decide("fp8", H100, PrecisionConfig(recipe="delayed", options={"amax_history_len": 16})).mode == "fp8"


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(PrecisionError, match="TRAINER_ASKED_PRECISION"):
        decide("fp4", CPU)


@pytest.mark.parametrize("facts", [A100, NOT_INSTALLED, CPU])
def test_a_fallback_can_be_refused(facts):
    wanted = PrecisionConfig(required=True)
    with refuses(PrecisionError, "precision.required", "fp8"):
        check_required(decide("fp8", facts, wanted), wanted)
    check_required(decide("fp8", facts), PrecisionConfig())
    check_required(decide("bf16", facts, wanted), wanted)
    check_required(decide("fp8", H100, wanted), wanted)


def test_ranks_that_agree_take_the_first_ones_words():
    decisions = [decide("fp8", dataclasses.replace(H100, gpu_index=index)) for index in (0, 1)]
    assert agree(decisions) == decisions[0]
    assert agree(decisions[:1]) == decisions[0]


def test_one_rank_without_fp8_takes_it_from_all_and_is_named():
    broken = decide("fp8", NOT_INSTALLED)
    agreed = agree([decide("fp8", H100), decide("fp8", H100), broken, broken])
    assert agreed.mode == "bf16"
    says(agreed.reason, "rank 2", "TransformerEngine")
    assert agree([broken, decide("fp8", T4)]).mode == "no"


def test_gpus_of_two_kinds_take_the_recipe_that_both_have():
    assert [
        agree(pair).recipe
        for pair in ([decide("fp8", B200), decide("fp8", H100)], [decide("fp8", H100), decide("fp8", B200)])
    ] == [
        "current",
        "current",
    ]


def test_a_precision_block_without_fp8_is_said_to_do_nothing():
    wanted = PrecisionConfig(recipe="block", required=True)
    says(idle_settings("bf16", wanted), "precision.recipe, precision.required", "bf16")
    assert idle_settings("bf16", PrecisionConfig()) is None
    assert idle_settings("fp8", wanted) is None


def test_tf32_is_told_where_something_large_is_computed_in_fp32_on_a_gpu():
    told = {(mode, device): tf32_sentence(mode, device, False) for mode in MODES for device in ("cpu", "cuda")}
    assert {case for case, sentence in told.items() if sentence} == {("no", "cuda")}
    assert "precision.tf32=true" in told["no", "cuda"]
    assert "precision.tf32" in tf32_sentence("no", "cuda", True)
    assert idle_settings("no", PrecisionConfig(tf32=True)) is None
    for mode in ("bf16", "fp16", "fp8"):
        assert "precision.tf32: without effect" in idle_settings(mode, PrecisionConfig(tf32=True))


def test_the_modes_are_those_that_accelerate_has_in_the_order_of_their_speed():
    assert MODES == ("no", "bf16", "fp16", "fp8")
    assert all(name == recipe.name and recipe.formats and recipe.multiple % 16 == 0 for name, recipe in RECIPES.items())
