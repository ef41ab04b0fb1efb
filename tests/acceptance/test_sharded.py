"""Runs whose model is sharded (FSDP2) over two ranks on a CPU: the numbers are those of data parallelism, and resumes are exact.

Checkpoints hold the model whole, so a run goes from sharded to not, and to another number of ranks.
"""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import (
    TINY_LLAMA,
    Started,
    checkpoint,
    environment,
    final_bytes,
    outcome,
    records,
    steps,
    wait_for_step,
    write_recipe,
)
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.store import verify

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch` says to each rank of a cluster file with `distributed_type: FSDP`."""

BF16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}

TIED = TINY_LLAMA | {"tie_word_embeddings": True, "intermediate_size": 65}
"""With uneven rows besides: 257 ids and 65 rows over two ranks, or three."""

READ = ("val_loss", "bits_per_byte", "shakespeare_lines", "grad_norm/", "param_norm/", "update_ratio/")
"""The numbers that are read of the model besides the steps."""

RECIPE = {
    "max_steps": 20,
    "global_batch": 12,
    "sequence_length": 32,
    "model": {"config": TIED},
    "checkpoint": {"every_steps": 10, "keep_last": 9, "keep_best": 0},
    "evaluation": {"every_steps": 10, "sample_tokens": 6, "tasks": ["shakespeare_lines"], "task_items": 8},
    "metrics": {"detail_every_steps": 5, "histogram_every_steps": 10},
}
"""Everything that reads the model besides the steps is in it."""


def run(folder, processes, variables=None, *overrides, **changes):
    """Trains to the end; gives the recipe, whose folder has the run."""
    folder.mkdir(exist_ok=True)
    recipe = write_recipe(folder, **{**RECIPE, **changes})
    started = Started(recipe, overrides, processes, environment=variables)
    code = started.wait()
    assert code == 0, f"exit code {code}\n{started.text()}"
    return recipe


def goes_on_from(recipe, folder, step=10):
    """A folder for a run that goes on from one checkpoint of another run."""
    store = checkpoint(recipe, step).parent
    shutil.copytree(
        store / checkpoint(recipe, step).name, folder / "checkpoints" / "tiny" / checkpoint(recipe, step).name
    )
    return folder


def greatest_gap(one, other, name, since=0):
    """The greatest relative difference of a number of the steps that both have taken, which have the same data."""
    pairs = [(a, b) for a in steps(one) for b in steps(other) if a["step"] == b["step"] > since]
    assert len(pairs) == 20 - since
    assert all(a["data_digest"] == b["data_digest"] for a, b in pairs)
    return max(abs(a[name] - b[name]) / a[name] for a, b in pairs)


def greatest_difference(one, other, step=20):
    """The greatest difference of a weight."""
    ours, theirs = (load_file(checkpoint(each, step) / "model.safetensors") for each in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    return run(tmp_path_factory.mktemp("replicated") / "run", 2)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return run(tmp_path_factory.mktemp("sharded") / "run", 2, SHARDED)


def test_a_sharded_run_has_the_numbers_of_data_parallelism(replicated, sharded):
    assert greatest_gap(replicated, sharded, "loss") < 1e-6
    assert greatest_gap(replicated, sharded, "grad_norm") < 1e-5
    assert greatest_difference(replicated, sharded) < 1e-6


def test_what_reads_the_model_besides_finds_what_it_finds_in_one_that_is_whole(replicated, sharded):
    """Validation, tasks, probes and samples: each with every rank's part in it."""
    ours, theirs = ([r for r in records(each) if r["step"] in (10, 20)] for each in (sharded, replicated))
    found = 0
    for mine, other in zip(ours, theirs, strict=True):
        tags = [tag for tag in other if tag.startswith(READ)]
        assert mine.keys() >= set(tags)
        found += len(tags)
        for tag in tags:
            assert mine[tag] == pytest.approx(other[tag], rel=1e-5), tag
    assert found > 20
    assert outcome(sharded)["sample"] == outcome(replicated)["sample"]


def test_a_checkpoint_of_a_sharded_run_is_like_any_other(replicated, sharded):
    folder, other = checkpoint(sharded, 20), checkpoint(replicated, 20)
    assert verify(folder) == []
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
    assert read_manifest(folder).conditions["sharded"] is True
    states = [torch.load(each / "optimizer.bin", weights_only=True) for each in (folder, other)]
    for name in ("state", "param_groups"):
        assert len(states[0][name]) == len(states[1][name])
    for mine, theirs in zip(states[0]["state"].values(), states[1]["state"].values(), strict=True):
        assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}


def test_a_sharded_run_that_was_killed_goes_on_to_the_same_bits(sharded, tmp_path):
    recipe = write_recipe(tmp_path, **RECIPE)
    started = Started(recipe, (), 2, environment=SHARDED)
    wait_for_step(recipe, 13, started)
    started.kill()
    run(tmp_path, 2, SHARDED)
    assert greatest_gap(sharded, recipe, "loss") == greatest_gap(sharded, recipe, "grad_norm") == 0
    assert final_bytes(recipe, 20) == final_bytes(sharded, 20)
    events = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "journal.jsonl").read_text().splitlines()]
    verdicts = [event for event in events if event["event"] == "verdict"]
    assert [event["exact"] for event in verdicts] == [True]


@pytest.mark.parametrize(
    ("processes", "variables"),
    [
        pytest.param(1, None, id="one"),
        pytest.param(3, SHARDED, id="three", marks=pytest.mark.long),
        pytest.param(2, None, id="replicated", marks=pytest.mark.long),
    ],
)
def test_another_number_of_ranks_goes_on_with_the_same_data(sharded, tmp_path, processes, variables):
    recipe = run(goes_on_from(sharded, tmp_path), processes, variables)
    assert greatest_gap(sharded, recipe, "loss", since=10) < 1e-6
    assert greatest_difference(sharded, recipe) < 1e-6


@pytest.mark.long
def test_a_run_goes_from_replicated_to_sharded_and_back(replicated, tmp_path):
    there = run(
        goes_on_from(replicated, tmp_path / "there"),
        2,
        SHARDED,
        checkpoint={"every_steps": 5, "keep_last": 9, "keep_best": 0},
    )
    assert greatest_gap(replicated, there, "loss", since=10) < 1e-6
    back = run(goes_on_from(there, tmp_path / "back", 15), 2)
    assert greatest_gap(replicated, back, "loss", since=15) < 1e-6
    assert greatest_difference(replicated, back) < 1e-6


@pytest.mark.long
def test_muon_gathers_each_matrix_and_computes_what_it_computes_of_a_whole_one(tmp_path):
    muon = {"optimizer": {"name": "muon", "lr": 0.003}}
    one, other = run(tmp_path / "replicated", 2, **muon), run(tmp_path / "sharded", 2, SHARDED, **muon)
    assert greatest_gap(one, other, "loss") < 1e-5
    again = run(goes_on_from(other, tmp_path / "again"), 2, SHARDED, **muon)
    assert final_bytes(again, 20) == final_bytes(other, 20)
    three = run(goes_on_from(other, tmp_path / "three"), 3, SHARDED, **muon)
    assert greatest_gap(other, three, "loss", since=10) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("model", [TINY_LLAMA, TIED], ids=["untied", "tied"])
def test_in_bf16_losses_stay_near_those_of_data_parallelism(tmp_path, model):
    own = {"model": {"config": model}, "optimizer": {"lr": 1e-3}}
    one = run(tmp_path / "replicated", 2, BF16, **own)
    other = run(tmp_path / "sharded", 2, {**SHARDED, **BF16}, **own)
    assert 0 < greatest_gap(one, other, "loss") < 3e-4
    again = run(goes_on_from(other, tmp_path / "again"), 2, {**SHARDED, **BF16}, **own)
    assert final_bytes(again, 20) == final_bytes(other, 20)


@pytest.mark.long
def test_a_save_that_is_waited_for_holds_the_same_bits(sharded, tmp_path):
    recipe = run(tmp_path, 2, SHARDED, checkpoint={**RECIPE["checkpoint"], "asynchronous": False})
    assert greatest_difference(sharded, recipe) == greatest_difference(sharded, recipe, 10) == 0
    states = [
        torch.load(checkpoint(each, 20) / "optimizer.bin", weights_only=True)["state"] for each in (recipe, sharded)
    ]
    for mine, theirs in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.long
def test_recomputed_activations_and_blocks_that_are_compiled_change_no_more_than_the_order_of_sums(sharded, tmp_path):
    recomputed = run(tmp_path / "recomputed", 2, SHARDED, "model.gradient_checkpointing=true")
    assert greatest_gap(sharded, recomputed, "loss") < 1e-6
    compiled = {"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}
    in_regions = run(tmp_path / "compiled", 2, {**SHARDED, **compiled})
    assert greatest_gap(sharded, in_regions, "loss") < 1e-6


@pytest.mark.long
def test_the_shipped_cluster_file_shards_and_a_launch_that_is_stopped_goes_on(tmp_path):
    """The whole way: the launcher reads the file, and SIGTERM ends the run with a checkpoint."""
    recipe = write_recipe(tmp_path, **RECIPE, preflight=False)
    words = [sys.executable, "-m", "trainer", "launch", "cpu_fsdp2_2proc", str(recipe)]
    with subprocess.Popen(words, env=environment()) as launcher:
        while not steps(recipe) and launcher.poll() is None:
            time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 75
    assert subprocess.run(words, env=environment(), check=False).returncode == 0
    assert outcome(recipe)["outcome"] == "finished"
    assert read_manifest(checkpoint(recipe, 20)).conditions["sharded"] is True
