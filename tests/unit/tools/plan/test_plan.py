"""What a plan says, held against the code that does it."""

import json
from dataclasses import replace

import pytest
import torch

from tests.commands import paragraph, trainer
from tests.messages import says
from tests.unit.model.tiny import tiny_model
from trainer.checkpoint.save.room import expected_bytes
from trainer.config.groups import ParameterGroup
from trainer.config.load import load
from trainer.gpus import KNOWN_GPUS, memory_bytes, peak_flops
from trainer.model import head
from trainer.model.families import known_shapes
from trainer.model.flops import shapes_of_model
from trainer.optim.build import build_optimizer
from trainer.optim.rules import freeze
from trainer.tools.plan import memory
from trainer.tools.plan.known import with_frozen
from trainer.tools.plan.memory import Setting, block_bytes, head_bytes, memory_of, moment_bytes
from trainer.tools.plan.pace import work_of
from trainer.tools.plan.remedy import nearest_change
from trainer.tools.plan.storage import storage_of

SETTING = Setting(
    micro_batch=8,
    sequence_length=128,
    accumulation=2,
    precision="bf16",
    is_compiled=True,
    is_checkpointed=False,
    on_cpu=False,
)


def config_of(*overrides):
    return load("shakespeare", list(overrides)).config


def facts(*words):
    done = trainer("plan", *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


# The command


def test_a_plan_has_everything_in_numbers():
    plan = facts("4gpu_bf16", "llama-1b", "--gpu", "H100", "--mfu", "0.5", "--price", "2")
    assert plan["parameters"]["total"] == 1_076_168_704
    assert plan["tokens"] == 28610 * 512 * 2048 and plan["steps"] == 28610
    assert plan["vocab_assumed"] is True and plan["train_tokens"] is None and plan["built"] is False
    [fit] = plan["devices"]
    step = plan["flops"]["model"] / (4 * 989e12 * 0.5)
    assert fit["step_seconds"] == pytest.approx(step) and fit["mfu"] == pytest.approx(0.5)
    hours = (fit["train_seconds"] + fit["evaluation_seconds"]) / 3600
    assert fit["price"] == pytest.approx(2 * 4 * hours)
    assert fit["fits"] is True and fit["change"] is None
    assert fit["memory"]["on_device"] == fit["needed_bytes"] < 80e9
    assert plan["storage"]["checkpoint_bytes"] == 12 * 1_076_168_704
    assert plan["activations"]["checkpointed"] < plan["activations"]["plain"]


@pytest.mark.parametrize("words", [["shakespeare"], ["gpt2-124m", "data.vocab_size=1000"]])
def test_a_model_that_is_built_is_the_same(words):
    plain, exact = facts("1gpu_bf16", *words), facts("1gpu_bf16", *words, "--exact")
    assert exact["built"] is True and plain["built"] is False
    for key in ("parameters", "flops", "storage", "devices"):
        assert exact[key] == plain[key]


def test_a_family_that_is_not_known_is_built():
    words = ["model.preset=null", "model.config={model_type: starcoder2, num_hidden_layers: 1, hidden_size: 48}"]
    plan = facts("1gpu_bf16", "shakespeare", *words)
    assert plan["built"] is True and plan["model_type"] == "starcoder2" and plan["parameters"]["total"] > 0


def test_without_a_gpu_the_usual_ones_are_compared_and_what_does_not_fit_says_what_would(monkeypatch):
    monkeypatch.setattr("trainer.tools.plan.plan.read_machine", lambda: type("Machine", (), {"gpus": ()}))
    plan = facts("4gpu_bf16", "llama-1b")
    by_name = {fit["device"]["name"]: fit for fit in plan["devices"]}
    assert len(by_name) > 4 and by_name["RTX 4090"]["fits"] is False
    assert "micro_batch=" in by_name["RTX 4090"]["change"]


def test_what_is_not_known_is_unknown():
    plan = facts("1gpu_bf16", "shakespeare", "--gpu", "Tesla T4")
    [fit] = plan["devices"]
    assert fit["device"]["peak_flops"] is None  # it does not compute in bf16
    assert fit["step_seconds"] is fit["train_seconds"] is fit["mfu"] is fit["price"] is None
    assert plan["storage"]["written_bytes"] is None and plan["storage"]["disk_bytes"] > 0
    says(trainer("plan", "1gpu_bf16", "shakespeare", "--gpu", "Tesla T4").out, "unknown", "--mfu")


def test_a_gpu_that_nobody_knows_is_refused_with_the_nearest():
    done = trainer("plan", "1gpu_bf16", "shakespeare", "--gpu", "H1000")
    assert done.code == 2
    says(paragraph(done.err), "H1000", "H100")


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(
    "words",
    [["4gpu_bf16", "llama-1b", "--price", "2"], ["cpu", "shakespeare"], ["1gpu_fp8", "gpt2-124m", "--gpu", "T4"]],
)
def test_no_line_is_wider_than_the_terminal(monkeypatch, width, words):
    monkeypatch.setenv("COLUMNS", str(width))
    out = trainer("plan", *words).out
    assert max(map(len, out.splitlines())) <= width
    says(out, "memory", "weights", "snapshots", "checkpoint")


def test_the_pace_of_another_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.tools.plan.measured.find_run", lambda run: tmp_path)
    monkeypatch.setattr("trainer.tools.plan.measured.load_resolved", lambda path: config_of())
    for module in ("measured", "plan"):
        monkeypatch.setattr(f"trainer.tools.plan.{module}.cpu_peak", lambda: 1e11)
    records = [{"step": step, "loss": 1.0, "step_seconds": 9.0 if step < 6 else 0.5} for step in range(1, 12)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    [same] = facts("cpu", "shakespeare", "--like", "before")["devices"]
    assert same["step_seconds"] == pytest.approx(0.5)
    [twice] = facts("cpu", "shakespeare", "global_batch=32", "optimizer.name=adamw", "--like", "before")["devices"]
    assert 0.5 < twice["step_seconds"] < 1.0
    (tmp_path / "metrics.jsonl").write_text(json.dumps(records[0]) + "\n")
    done = trainer("plan", "cpu", "shakespeare", "--like", "before")
    assert done.code != 0
    says(paragraph(done.err), "before")


# Memory


def test_the_sizes_of_chunks_are_those_of_the_head():
    for name in ("CPU_CHUNK_BYTES", "MIN_CHUNK_TOKENS"):
        assert getattr(memory, name) == getattr(head, name)
    assert (memory.GPU_CHUNK_BYTES, memory.GPU_CHUNK_SHARE) == (head.CUDA_CHUNK_BYTES, head.CUDA_CHUNK_SHARE)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("groups", [[], [ParameterGroup(match="embed|lm_head", freeze=True)]])
@pytest.mark.parametrize("shape", ["llama", "llama-tied", "gpt2"])
def test_moments_and_a_checkpoint_are_what_the_optimizer_has(optimizer, groups, shape):
    groups = [ParameterGroup(match="wte|wpe", freeze=True)] if groups and shape == "gpt2" else groups
    base = config_of(f"optimizer.name={optimizer}")
    config = base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"groups": groups})})
    model = tiny_model(shape)
    shapes = with_frozen(shapes_of_model(model), config)
    freeze(model, groups)
    _, moments = expected_bytes(model, build_optimizer(model, config.optimizer))
    assert moment_bytes(shapes, config.optimizer) == moments
    assert sum(w.numel for w in shapes.weights if w.is_trained) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_sharded_weights_gradients_and_moments_fall_with_the_ranks():
    shapes, optimizer = shapes_of_model(tiny_model("llama")), config_of("optimizer.name=adamw").optimizer
    whole, part = (memory_of(shapes, optimizer, replace(SETTING, shards=shards), 80e9) for shards in (1, 4))
    for name in ("weights", "gradients", "moments"):
        assert getattr(part, name) == getattr(whole, name) / 4
    assert part.snapshots == whole.snapshots, "rank 0 holds the whole model's"
    assert part.activations == whole.activations and part.copies > whole.copies


def test_activations_grow_with_the_micro_batch_and_hardly_any_are_kept_where_they_are_computed_again():
    shapes, optimizer = shapes_of_model(tiny_model("llama")), config_of().optimizer

    def activations(**fields):
        return memory_of(shapes, optimizer, replace(SETTING, **fields), 80e9).activations

    assert activations(micro_batch=16) == 2 * activations(micro_batch=8)
    assert activations(is_checkpointed=True) < activations() < activations(is_compiled=False)
    assert activations() < activations(precision="no")


def test_the_embedding_has_a_gradient_more_where_it_is_tied_and_where_micro_batches_add_up():
    optimizer = config_of().optimizer

    def head_part(shape, accumulation):
        shapes = shapes_of_model(tiny_model(shape))
        few = replace(SETTING, micro_batch=1, sequence_length=1, accumulation=accumulation, precision="no")
        return memory_of(shapes, optimizer, few, 80e9).head - head_bytes(shapes, few, 80e9), 4 * shapes.head.numel

    assert head_part("llama", 1)[0] == 0
    extra, table = head_part("llama-tied", 2)
    assert 0 < extra < table


def test_norms_behind_products_and_capped_scores_are_kept_too():
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 96, "head_dim": 16}

    def kept(model_type, **fields):
        shapes = known_shapes(model_type, sizes | fields, vocab_rows=64, sequence_length=8)
        return block_bytes(shapes, SETTING) / SETTING.tokens

    assert kept("qwen3") - kept("llama") == 4 * (64 + 32)
    assert kept("gemma2", attn_logit_softcapping=None) - kept("llama") == 4 * 3 * 64
    assert kept("gemma2") - kept("gemma2", attn_logit_softcapping=None) == 2 * 2 * 4 * SETTING.sequence_length


# What would make it fit


def test_the_nearest_change_is_the_largest_micro_batch_that_fits():
    asked = []

    def fits(setting):
        asked.append(setting)
        return setting.micro_batch <= 2

    assert nearest_change(SETTING, 64, 1, fits) == "micro_batch=2"
    assert [setting.micro_batch for setting in asked] == [4, 2]
    assert asked[-1].accumulation == 32


def test_then_blocks_are_computed_again_and_then_it_is_shared_out():
    assert nearest_change(SETTING, 64, 1, lambda s: s.is_checkpointed) == "model.gradient_checkpointing=true"
    assert "sharded over 8 GPUs" in nearest_change(SETTING, 64, 1, lambda s: s.shards >= 8)
    assert nearest_change(SETTING, 64, 1, lambda s: False) is None


# Arithmetic and checkpoints


def test_work_that_is_no_progress_is_counted_beside_it():
    shapes = shapes_of_model(tiny_model("llama"))
    plain = work_of(shapes, config_of("optimizer.name=adamw"))
    again = work_of(shapes, config_of("optimizer.name=adamw", "model.gradient_checkpointing=true"))
    muon = work_of(shapes, config_of("optimizer.name=muon"))
    assert plain.again == plain.optimizer == 0 < again.again < plain.model / 3
    assert again.model == muon.model == plain.model
    # Two layers: q and o 32 x 32, k and v 16 x 32, three of the MLP 32 x 48.
    sizes = [(32, 32)] * 4 + [(16, 32)] * 4 + [(32, 48)] * 6
    assert muon.optimizer == sum(5 * (4 * m * m * n + 2 * m**3) for m, n in sizes)
    assert muon.seconds(1e9, 2) == pytest.approx((muon.model / 2 + muon.optimizer) / 1e9)


def test_checkpoints_are_counted_by_the_tiers_and_the_clock():
    config = config_of(
        "max_steps=1000", "checkpoint.keep_last=2", "checkpoint.keep_every_steps=100", "optimizer.name=adamw"
    )
    told = {"sequences_per_epoch": None, "has_validation": True, "on_cpu": False, "has_twins": False}
    storage = storage_of(config, 10**9, step_seconds=1.0, **told)
    assert storage.most_kept == 2 + 1 + 10 and storage.disk_bytes == 14 * 10**9
    assert storage.saves["checkpoint.keep_every_steps"] == 10
    assert storage.written_bytes == sum(storage.saves.values()) * 10**9
    assert 50 < storage.interval_seconds < 60 and storage.lost_work_seconds <= 60
    unknown = storage_of(config, 10**9, step_seconds=None, **told)
    assert unknown.saves is None and unknown.disk_bytes == storage.disk_bytes


# GPUs


def test_every_gpu_of_the_table_is_found_by_its_own_name():
    for name in KNOWN_GPUS:
        assert peak_flops(name, "fp16") and (name == "A100" or memory_bytes(name) >= 16e9)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA H100 80GB HBM3", 80), ("NVIDIA H200", 141)],
)
def test_memory_is_that_of_the_data_sheet(name, gigabytes):
    assert memory_bytes(name) == gigabytes * 1e9
    assert memory_bytes("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert torch.float32.itemsize == memory.FP32
