import logging
import math

import pytest
import torch

from tests.messages import logged, refuses, says
from tests.unit.model.tiny import tiny_model
from trainer.config.schema import OptimizerConfig, PrecisionConfig
from trainer.errors import PrecisionError
from trainer.journal import Journal, read_events
from trainer.model.flops import flops_per_token
from trainer.optim.build import build_optimizer
from trainer.precision import fp8_monitor
from trainer.precision.decide import Decision
from trainer.precision.fp8_model import Fp8Model
from trainer.precision.fp8_monitor import GAP_CHECKS
from trainer.precision.monitor import NoFp8, build_monitor

BF16 = Decision("bf16", "bf16", "as the cluster file asks")


def fp8_decision(recipe="current", emulated=True):
    return Decision(
        "fp8", "fp8", "it can", recipe=recipe, title=recipe, format="hybrid", backend="the tests'", emulated=emulated
    )


@pytest.fixture
def attached(fp8_accelerator, tmp_path):
    """Makes a monitor of a tiny model, prepared by Accelerate, as run/build.py does."""

    def make(decision=None, accumulation=1, compiled=False, shape="gpt2", **wanted):
        settings = PrecisionConfig(
            **{
                "bf16_first_blocks": 0,
                "bf16_last_blocks": 0,
                "statistics_every_steps": 0,
                "shadow_every_steps": 0,
                **wanted,
            }
        )
        model = tiny_model(shape)
        chosen = decision or fp8_decision()
        fp8 = Fp8Model(chosen, settings, model)
        optimizer = build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3))
        prepared, optimizer = fp8_accelerator.prepare(model, optimizer)
        launch = {"accumulation": accumulation, "compiled": compiled, "deterministic": True}
        facts = {"flops_per_token": flops_per_token(model, 16), "journal": Journal(tmp_path), **launch}
        monitor = build_monitor(fp8, chosen, settings, fp8_accelerator, prepared, optimizer, **facts)
        return monitor, prepared, model

    return make


def step(monitor, model, tokens, number):
    monitor.begin(number)
    monitor.micro_batch(1)
    model(tokens, labels=tokens).backward()
    return monitor.end(number, tokens, tokens)


def test_without_fp8_nothing_is_done_and_nothing_is_written(tokens):
    launch = {"accumulation": 4, "compiled": False, "deterministic": True}
    model, facts = torch.nn.Identity(), {"flops_per_token": 1.0, "journal": None, **launch}
    monitor = build_monitor(None, BF16, PrecisionConfig(), None, model, None, **facts)
    monitor.check_warm_up()
    monitor.begin(100)
    monitor.micro_batch(1)
    assert monitor.end(500, tokens, tokens) == {}
    assert monitor.record.label == "bf16"
    assert monitor.record.words == BF16.sentence
    assert monitor.record.facts()["bf16_since_step"] is None
    assert monitor.record.settings == {"precision": "bf16"}


def test_a_fallback_writes_down_that_nothing_is_in_fp8(tokens):
    monitor = NoFp8(Decision("fp8", "bf16", "no device"), PrecisionConfig())
    assert monitor.end(1, tokens, tokens) == {"precision/fp8_coverage": 0.0}
    assert monitor.record.label == "bf16"


def test_the_log_says_how_much_is_in_fp8_and_what_is_not(attached, caplog):
    with caplog.at_level(logging.INFO):
        monitor, _, _ = attached(bf16_last_blocks=1)
    logged(caplog, "fp8 emulation", "4 of 8 linear layers", "50.0%")
    logged(caplog, "bf16", "4 layers", "transformer.h.1.attn.c_attn, transformer.h.1.attn.c_proj")
    assert monitor.record.facts()["num_layers"] == 4
    says(monitor.record.words, "50.0%")


def test_a_backward_pass_in_bf16_is_not_counted_as_fp8(attached, caplog):
    with caplog.at_level(logging.INFO):
        monitor, _, _ = attached(options={"backward_override": "dequantized"})
    logged(caplog, "33.3%")
    logged(caplog, "backward_override=dequantized")
    assert "dequantized" in monitor.record.facts()["arguments"]


def test_a_run_in_fp8_is_compared_by_what_its_fp8_is_made_of(attached):
    monitor, _, _ = attached(
        fp8_decision("delayed"), recipe="auto", options={"amax_history_len": 16}, statistics_every_steps=7
    )
    assert monitor.record.settings == {
        "precision": "fp8 emulation",
        "precision.recipe": "delayed",
        "precision.format": "hybrid",
        "precision.bf16_first_blocks": 0,
        "precision.bf16_last_blocks": 0,
        "precision.options.amax_history_len": 16,
    }


def test_an_emulation_covers_nothing_and_real_fp8_its_share(attached, tokens):
    monitor, model, _ = attached()
    assert step(monitor, model, tokens, 1) == {"precision/fp8_coverage": 0.0}
    monitor, model, _ = attached(fp8_decision(emulated=False))
    assert step(monitor, model, tokens, 1) == {
        "precision/fp8_coverage": pytest.approx(monitor.record.facts()["matmul_fraction"])
    }


def test_a_model_that_prepare_changed_is_refused(stand_in):
    model = tiny_model("gpt2")
    wanted = PrecisionConfig(bf16_first_blocks=0, bf16_last_blocks=0)
    fp8 = Fp8Model(fp8_decision(), wanted, model)
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with refuses(PrecisionError, "tied"):
        fp8.check_prepared("fp8", optimizer)


def test_a_warm_up_or_a_first_step_outside_of_fp8_is_refused(attached, tokens):
    monitor, model, bare = attached()
    with refuses(PrecisionError, "8 of 8 layers", "warm-up"):
        monitor.check_warm_up()
    model(tokens, labels=tokens)
    monitor.check_warm_up()
    with refuses(PrecisionError, "step 1"):
        monitor.end(1, tokens, tokens)


def test_statistics_are_taken_when_due_of_the_first_micro_batch_only(attached, tokens):
    monitor, model, bare = attached(statistics_every_steps=2)
    assert len(step(monitor, model, tokens, 1)) == 1
    monitor.begin(2)
    for number in (1, 2):
        monitor.micro_batch(number)
        assert bool(bare.transformer.h[0].mlp.c_fc._forward_pre_hooks) == (number == 1)
        model(tokens, labels=tokens).backward()
    numbers = monitor.end(2, tokens, tokens)
    assert {"precision/amax_input/qkv", "precision/underflow_weight/mlp_down"} <= numbers.keys()
    assert len(numbers) == 1 + 6 * 4
    assert len(step(monitor, model, tokens, 3)) == 1


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"accumulation": 2}, [True, False]),
        ({"accumulation": 1}, [None, None]),
        ({"accumulation": 2, "compiled": True}, [None, None]),
        ({"accumulation": 2, "cache_weights": False}, [None, None]),
        ({"accumulation": 2, "decision": fp8_decision("delayed")}, [None, None]),
    ],
)
def test_fp8_weights_are_kept_where_that_changes_nothing_and_saves_something(
    attached, stand_in, tokens, changes, flags
):
    monitor, model, _ = attached(**changes)
    for number, flag in enumerate(flags, start=1):
        monitor.micro_batch(number)
        stand_in.RAN.clear()
        model(tokens, labels=tokens).backward()
        assert {ran.first_micro_batch for ran in stand_in.RAN} == {flag}


def test_delayed_scaling_is_warned_of(attached, caplog):
    attached(fp8_decision("delayed"))
    logged(caplog, "scales", "not exact")


# Compared with bf16


def test_the_comparison_is_of_fp8_and_bf16_without_dropout_and_disturbs_nothing(attached, stand_in, tokens):
    monitor, model, bare = attached(shadow_every_steps=2, accumulation=2)
    reference = tiny_model("gpt2").eval()
    model.train()
    step(monitor, model, tokens, 1)
    monitor.micro_batch(2)
    state = torch.get_rng_state()
    stand_in.RAN.clear()
    numbers = monitor.end(2, tokens, tokens)
    assert torch.equal(state, torch.get_rng_state())
    assert bare.training
    assert len(stand_in.RAN) == 8
    assert all(ran.in_fp8 and ran.first_micro_batch is None for ran in stand_in.RAN)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = reference(tokens, labels=tokens).item()
    assert numbers["precision/shadow_loss"] == pytest.approx(expected, abs=1e-6)
    assert 0.0 < abs(numbers["precision/loss_gap"]) < 0.02
    stand_in.RAN.clear()
    model(tokens, labels=tokens)
    assert {ran.first_micro_batch for ran in stand_in.RAN} == {False}, "the flag of the micro-batch is put back"


def test_a_gap_that_stays_ends_fp8_and_is_told_everywhere(attached, stand_in, tokens, monkeypatch, tmp_path, caplog):
    monitor, model, _ = attached(fp8_decision(emulated=False), shadow_every_steps=1)
    gaps = iter([0.5, 0.001, 0.5, math.inf, 0.5])
    monkeypatch.setattr(fp8_monitor, "relative_gap", lambda *_: next(gaps))
    for number in range(1, 6):
        assert monitor.record.label == monitor.record.mode == "fp8", number
        numbers = step(monitor, model, tokens, number)
        assert numbers["precision/fp8_coverage"] > 0.5, "the step that ends it was in fp8 itself"
    assert monitor.record.label == monitor.record.mode == "bf16"
    assert monitor.record.facts()["bf16_since_step"] == 5
    assert monitor.record.facts()["sentence"] == monitor.record.words
    says(monitor.record.words, "bf16", "fp8", "current", "step 5")
    assert monitor.record.facts()["mode"] == "bf16"
    assert "matmul_fraction" not in monitor.record.facts()
    logged(caplog, "bf16", "step 6", "50.00 %", "3 comparisons")
    assert not read_events(tmp_path), "a run that ends here has computed nothing in bf16"
    stand_in.RAN.clear()
    for number in (6, 7):
        assert step(monitor, model, tokens, number) == {"precision/fp8_coverage": 0.0}
        assert not stand_in.RAN
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "precision"]
    assert (event["step"], event["mode"]) == (5, "bf16")
    assert "50.00 % above" in event["reason"]
    assert GAP_CHECKS == 3
    monitor.check_warm_up()


def test_a_loss_that_is_no_number_in_fp8_is_told_as_that(attached, tokens, monkeypatch, caplog):
    monitor, model, _ = attached(shadow_every_steps=1)
    monkeypatch.setattr(Fp8Model, "loss", lambda *_, in_fp8: torch.tensor(math.nan if in_fp8 else 2.0))
    for number in range(1, GAP_CHECKS + 1):
        step(monitor, model, tokens, number)
    logged(caplog, "step 1", "nan", "2.0000", "precision.max_loss_gap")
    logged(caplog, "bf16", "3 comparisons", "step 3")
    assert "inf" not in caplog.text


def test_a_run_that_would_end_in_fp8_goes_on_in_bf16_once_and_after_one_more_step(
    attached, stand_in, tokens, tmp_path, caplog, monkeypatch
):
    monitor, model, _ = attached()
    phases = []
    monkeypatch.setattr("trainer.precision.fp8_monitor.beats.beat", lambda phase: phases.append((number, phase)))
    step(monitor, model, tokens, 1)
    assert monitor.give_up_fp8(1, "all was NaN") and monitor.give_up_fp8(2, "NaN again"), "step 2 is in fp8 yet"
    for number, in_fp8 in ((2, True), (3, False)):
        stand_in.RAN.clear()
        step(monitor, model, tokens, number)
        assert bool(stand_in.RAN) == in_fp8 and monitor.record.mode == ("fp8" if in_fp8 else "bf16"), number
    assert phases == [(3, "compiling")], "which may take longer than a hang of a step"
    assert not monitor.give_up_fp8(3, "NaN in bf16")
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "precision"]
    assert (event["step"], event["mode"], event["reason"]) == (2, "bf16", "all was NaN")
    logged(caplog, "bf16", "step 3", "all was NaN")
    assert not NoFp8(BF16, PrecisionConfig()).give_up_fp8(1, "NaN"), "without fp8 there is no way back"


def test_the_way_back_to_bf16_survives_a_restart_until_a_launch_in_bf16(attached, stand_in, tokens, caplog, tmp_path):
    monitor, model, _ = attached()
    monitor.load_state_dict({"switched_at": 7, "gaps_in_a_row": 3})
    assert monitor.record.label == "bf16"
    logged(caplog, "bf16", "step 7")
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "precision"]
    assert (event["step"], event["mode"], event["resumed"]) == (7, "bf16", True)
    assert monitor.record.settings["precision"] == "bf16"
    step(monitor, model, tokens, 8)
    assert not stand_in.RAN
    forgetful = NoFp8(BF16, PrecisionConfig())
    forgetful.load_state_dict(monitor.state_dict())
    assert forgetful.state_dict() == {"switched_at": None, "gaps_in_a_row": 0}
    monitor.load_state_dict(forgetful.state_dict())
    step(monitor, model, tokens, 9)
    assert stand_in.RAN
    assert monitor.record.label == "fp8 emulation"


def test_a_launch_that_could_not_have_fp8_does_not_forget_the_way_back_to_bf16():
    state = {"switched_at": 7, "gaps_in_a_row": 3}
    for mode in ("bf16", "no"):
        monitor = NoFp8(Decision("fp8", mode, "no device"), PrecisionConfig())
        monitor.load_state_dict(state)
        assert monitor.state_dict() == state
        assert monitor.record.label == monitor.record.mode == mode
        assert "no device" in monitor.record.words


def test_the_journal_states_a_fallback_with_its_reason():
    monitor = NoFp8(Decision("fp8", "bf16", "no device"), PrecisionConfig())
    assert monitor.record.start_facts() == {"precision": "bf16", "instead_of": "fp8", "because": "no device"}
    assert NoFp8(BF16, PrecisionConfig()).record.start_facts() == {"precision": "bf16"}
