"""Every shipped recipe trains, at reduced size, and every shipped cluster file is one that Accelerate understands."""

import math

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import TERecipeKwargs
from accelerate.utils.constants import TORCH_DYNAMO_MODES
from accelerate.utils.dataclasses import DynamoBackend

from tests.launching import checkpoint, outcome, steps, train
from tests.sources import write_source
from trainer.config.cluster import cluster_names, clusters_folder, read_cluster
from trainer.config.load import load, load_resolved, recipe_names
from trainer.precision.decide import MODES

SMALL = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
"""Depth and width, by the first word of the preset."""


def _small_model(whole, folder):
    """A recipe's model and data at reduced size: its preset's, or a small one of the same kind in place of the one that it begins from."""
    if whole.model.init_from:
        return {
            "data": {"corpus": "shakespeare", "tokenizer": "bytes"},
            "model": {"init_from": str(write_source(folder / "source"))},
        }
    return {"data": {"corpus": "shakespeare"}, "model": {"config": SMALL[whole.model.preset.split("-")[0]]}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_takes_three_steps_at_reduced_size(name, tmp_path):
    whole = load(name).config
    reduced = {
        "base": name,
        "name": "small",
        "max_steps": 3,
        "global_batch": 4,
        "micro_batch": 2,
        "sequence_length": 16,
        "checkpoints_folder": str(tmp_path / "checkpoints"),
        "runs_folder": str(tmp_path / "runs"),
        **_small_model(whole, tmp_path),
        "schedule": {"warmup_steps": 1},
        "evaluation": {"num_sequences": 4, "sample_tokens": 4},
    }
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(reduced))
    train(recipe)
    taken = steps(recipe, "small")
    assert [record["step"] for record in taken] == [1, 2, 3]
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in taken)
    assert outcome(recipe, "small")["outcome"] == "finished"
    assert checkpoint(recipe, 3, "small").is_dir()
    ran = load_resolved(tmp_path / "runs" / "small" / "config.yaml")
    assert (ran.optimizer, ran.schedule.name, ran.model.preset) == (
        whole.optimizer,
        whole.schedule.name,
        whole.model.preset,
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_begins_by_saying_what_it_is(name):
    from trainer.config.load import RECIPES

    first = (RECIPES / f"{name}.yaml").read_text().split("\n")[0]
    assert first.startswith("# ")
    assert len(first) > 30


@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_fixes_how_often_a_checkpoint_is_made(name):
    """The budget decides: a number of steps would be right for one machine only."""
    wanted = load(name).config.checkpoint
    assert (wanted.every_steps, wanted.every_minutes, wanted.every_tokens) == (None, None, None)


# Cluster files


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_file_is_read_by_accelerates_own_loader_as_we_read_it(name):
    path = clusters_folder() / f"{name}.yaml"
    theirs, ours = load_config_from_file(str(path)), read_cluster(name)
    assert theirs.num_processes == ours.num_processes
    assert str(theirs.distributed_type).removeprefix("DistributedType.") == ("FSDP" if "fsdp" in name else "MULTI_GPU")
    assert theirs.mixed_precision == ours.precision
    assert ours.precision in MODES
    assert theirs.use_cpu == ours.use_cpu == name.startswith("cpu")


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_file_begins_by_saying_for_which_machine(name):
    first = (clusters_folder() / f"{name}.yaml").read_text().split("\n")[0]
    assert first.startswith("# ")
    assert ("CPU" if name.startswith("cpu") else "GPU") in first
    count = {
        "8gpu": "8 GPUs",
        "4gpu": "4 GPUs",
        "1gpu": "One GPU",
        "multinode": "Several machines",
        "cpu": "One process",
        "cpu_2proc": "Two processes",
        "cpu_fsdp2_2proc": "two processes",
    }
    assert count[name if name.startswith("cpu") else name.split("_")[0]] in first


@pytest.mark.parametrize("name", cluster_names())
def test_the_compiler_and_fp8_settings_are_ones_that_accelerate_knows(name):
    theirs = load_config_from_file(str(clusters_folder() / f"{name}.yaml"))
    dynamo = theirs.dynamo_config
    known = {
        "dynamo_backend",
        "dynamo_mode",
        "dynamo_use_fullgraph",
        "dynamo_use_dynamic",
        "dynamo_use_regional_compilation",
    }
    assert dynamo.keys() <= known
    assert bool(dynamo) != (name == "cpu_fsdp2_2proc"), "what is for tests alone is not compiled"
    assert dynamo.get("dynamo_backend", "NO") in DynamoBackend.list()
    assert dynamo.get("dynamo_mode", "default") in TORCH_DYNAMO_MODES
    if theirs.mixed_precision == "fp8":
        assert theirs.fp8_config["backend"] == "TE"
        assert theirs.fp8_config.keys() - {"backend"} <= TERecipeKwargs.__dataclass_fields__.keys()
    else:
        assert not theirs.fp8_config


def test_the_shipped_files_are_those_that_were_promised():
    assert {"cpu", "cpu_2proc", "1gpu_bf16", "1gpu_fp8", "4gpu_bf16", "4gpu_fp8"} <= set(cluster_names())
    assert {"shakespeare", "gpt2-124m", "llama-124m", "llama-1b", "continue-1b"} <= set(recipe_names())
