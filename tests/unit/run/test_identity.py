"""Two runs are as fast as each other under equal conditions: what is among them, and what is not."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin

from trainer.checkpoint.format.manifest import Manifest
from trainer.config.load import flatten, load
from trainer.model.head_way import HeadWay
from trainer.model.routing import Routing
from trainer.precision.decide import Decision
from trainer.replay import fact_changes
from trainer.run.identity import computing_conditions, facts_of_checkpoint, replay_facts, replay_key, speed_conditions


def conditions(*overrides, recipe="gpt2-124m", processes=1, device="cpu"):
    return speed_conditions(
        load(recipe, ["data.corpus=shakespeare", *overrides]).config, processes, torch.device(device)
    )


@pytest.mark.parametrize(
    "override",
    [
        "micro_batch=1",
        "global_batch=960",
        "sequence_length=512",
        "model.config={n_layer: 6}",
        "model.preset=gpt2-350m",
        "optimizer.name=muon",
        "model.gradient_checkpointing=true",
        "deterministic=false",
        "data.tokenizer=bytes",
        "precision.format=e4m3",
        "precision.options={backward_override: dequantized}",
        "precision.bf16_first_blocks=0",
        "precision.bf16_last_blocks=2",
        "precision.cache_weights=false",
    ],
)
def test_what_changes_the_speed_is_another_condition(override):
    assert conditions(override) != conditions()


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "seed=2",
        "max_steps=700",
        "optimizer.lr=1e-4",
        "precision.recipe=block",
        "precision.required=true",
        "checkpoint.keep_last=9",
        "runs_folder=elsewhere",
    ],
)
def test_what_does_not_is_none(override):
    assert conditions(override) == conditions()


def test_the_number_of_processes_and_the_versions_are_conditions(monkeypatch):
    assert conditions(processes=2) != conditions()
    before = conditions()
    monkeypatch.setattr("trainer.run.identity.version", lambda package: "2.20.2")
    assert conditions()["transformer_engine"] == "2.20.2"
    assert conditions() != before
    assert before["torch"] == torch.__version__
    assert before["transformer_engine"] is None


def test_a_preset_and_its_fields_are_the_same_model():
    fields = (
        "model_type: gpt2, n_layer: 12, n_embd: 768, n_head: 12, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0"
    )
    assert conditions("model.preset=", f"model.config={{{fields}}}") == conditions()


def test_the_name_of_a_gpu_is_a_condition(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert conditions(device="cuda")["device"] == "NVIDIA H100 80GB HBM3"


def facts(mode="bf16", *overrides, head=None, routers=None, is_sharded=False):
    accelerator = SimpleNamespace(
        is_fsdp2=is_sharded,
        device=torch.device("cpu"),
        num_processes=1,
        mixed_precision=mode,
        state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin()),
    )
    description = SimpleNamespace(
        identity={"seed": 1337, "optimizer": "adamw", "tokenizer": None}, model={"n_layer": 12, "dtype": "float32"}
    )
    return replay_facts(
        load("gpt2-124m", overrides).config,
        accelerator,
        Decision("fp8", mode, "", recipe="current"),
        description,
        head,
        routers,
    )


def key(mode):
    return replay_key(facts(mode))


def test_the_facts_of_a_replay_have_the_names_of_the_settings_and_only_what_decides_about_bits_is_among_them():
    found = facts("bf16", "global_batch=960", "evaluation.every_steps=7", "checkpoint.keep_last=9")
    assert found["global_batch"] == 960
    assert found["optimizer.betas"] == [0.9, 0.95]
    assert found["model.n_layer"] == 12
    assert found["torch"] == torch.__version__
    assert found["processes"] == 1
    assert found["precision"] == "bf16"
    assert not found.keys() & {"evaluation.every_steps", "checkpoint.keep_last", "model.dtype", "name"}
    assert replay_key(found) != replay_key(facts("bf16"))
    assert replay_key({**found, "new and not used": None}) == replay_key(found)


def test_that_the_model_is_sharded_is_a_fact_that_runs_of_before_did_not_have():
    assert facts("bf16")["sharded"] is None, "replays of before stay comparable"
    assert replay_key(facts("bf16", is_sharded=True)) != replay_key(facts("bf16"))


def test_what_muons_iteration_computes_in_is_a_fact_of_runs_with_muon():
    with_muon = facts("bf16", "optimizer.name=muon")
    assert with_muon["muon_iteration"] == "float32"
    assert facts("bf16")["muon_iteration"] is None
    of_before = {name: value for name, value in with_muon.items() if name != "muon_iteration"}
    assert fact_changes(of_before, with_muon) == ["muon_iteration bfloat16 (before this was recorded) -> float32"]


def test_the_way_of_the_head_is_a_fact_where_it_is_not_the_default():
    assert facts("bf16")["head"] is None, "replays of before stay comparable on a CPU"
    ways = [HeadWay(fused, torch.bfloat16, chunk) for fused, chunk in ((True, 16384), (True, 8192), (False, 6592))]
    found = [facts("bf16", head=way) for way in ways]
    assert len({replay_key(now) for now in found}) == 3
    assert found[0]["head"] == "one compiled kernel, bfloat16, 16384 tokens a chunk"
    of_before = {name: value for name, value in found[0].items() if name != "head"}
    assert [change.partition(" ")[0] for change in fact_changes(of_before, found[0])] == ["head"]


def test_that_routers_have_a_part_in_the_loss_is_a_fact_that_launches_of_before_did_not_have():
    assert facts("bf16")["routers"] is None
    found = facts("bf16", routers=Routing(0.05, num_experts=4, experts_per_token=2))
    of_before = {name: value for name, value in found.items() if name != "routers"}
    assert [change.partition(" ")[0] for change in fact_changes(of_before, found)] == ["routers"]
    without = facts("bf16", routers=Routing(0.0, num_experts=4, experts_per_token=2))
    assert fact_changes(of_before, without) == [], "a coefficient of zero is what they trained with"


def test_a_checkpoint_tells_the_same_facts_by_the_same_names():
    now = facts("bf16")
    manifest = Manifest(
        step=3,
        sequences=0,
        tokens=0,
        reason="periodic",
        created="",
        world_size=1,
        precision="bf16",
        identity={"seed": 1337, "tokenizer": None},
        model={"n_layer": 12},
        versions={"torch": torch.__version__, "accelerate": "1.0"},
    )
    told = facts_of_checkpoint(manifest, flatten(load("gpt2-124m").config))
    assert told.keys() < now.keys()
    assert {name for name in told if told[name] != now[name]} == {"accelerate"}


def test_what_chooses_among_kernels_of_fp8_is_part_of_a_replay_in_fp8_alone(monkeypatch):
    before = key("fp8"), key("bf16")
    monkeypatch.setenv("NVTE_FP8_DPA_BWD", "0")
    assert key("fp8") != before[0]
    assert key("bf16") == before[1]


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_a_fact_where_it_decides_about_bits_and_none_elsewhere(monkeypatch, allowed):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    before, found = torch.backends.cuda.matmul.allow_tf32, {}
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        assert facts("no")["tf32"] is None and "precision.tf32" not in facts("no"), (
            "a CPU has none, and replays of before stay comparable"
        )
        for mode in ("no", "bf16", "fp16", "fp8"):
            accelerator = SimpleNamespace(
                device=torch.device("cuda"), state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin()), is_fsdp2=False
            )
            found[mode] = computing_conditions(accelerator, Decision(mode, mode, ""), optimizer="adamw")["tf32"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found == {"no": allowed or None, "bf16": None, "fp16": None, "fp8": None}
