"""A run that diverges goes back to before that, steps over the data that it diverged on, and ends like one that never had them."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import xxhash

from tests.launching import (
    PROJECT,
    TINY_GPT2,
    Started,
    checkpoint,
    environment,
    final_bytes,
    outcome,
    records,
    steps,
    write_cluster,
    write_recipe,
)
from trainer.checkpoint.format.manifest import read_manifest
from trainer.data.order import sequence_at
from trainer.journal import read_events
from trainer.safety.rollback import ROLLBACKS

NUM_SEQUENCES = 699 // 16
BAD, LAST = 12, 21
"""The first step whose batch is bad, and the one by which the run is told to have diverged."""


def events(recipe, event):
    return read_events(recipe.parent / "runs" / "tiny", event)


def recipe_of(folder, **changes):
    folder.mkdir(exist_ok=True)
    changes = {
        "model": {"config": TINY_GPT2},
        "checkpoint": {"every_steps": 5, "keep_last": 1, "keep_best": 0},
        **changes,
    }
    return write_recipe(folder, **changes)


def bad_shard(first_step, last_step):
    """The batches of these steps of a run that never went back give gradients that are no numbers."""
    from trainer import loop

    whole = loop.accumulate_gradients

    def accumulate(run, batch):
        loss = whole(run, batch)
        if first_step <= batch.first_sequence // batch.num_sequences + 1 <= last_step:
            for parameter in run.model.parameters():
                parameter.grad.fill_(float("nan"))
        return loss

    loop.accumulate_gradients = accumulate


def stepped_over(stretch):
    """A straight run that is told from its beginning what not to train on."""
    from trainer.run import begin

    learn = begin.learn_rollbacks

    def told(run, resumed_step):
        learn(run, resumed_step)
        run.loader.stepped_over = (stretch,)

    begin.learn_rollbacks = told


def digest_at(position):
    """Of the batch that begins there."""
    ids = sequence_at(np.arange(position, position + 8), NUM_SEQUENCES, 1337)
    return xxhash.xxh3_64_hexdigest(ids.astype("<i8").tobytes())


def launch(recipe, code, sabotage, *overrides, num_processes=1):
    started = Started(recipe, overrides, num_processes, sabotage)
    assert started.wait() == code, started.text()
    return started.text()


def test_a_run_goes_back_and_steps_over_what_it_diverged_on(tmp_path):
    recipe = recipe_of(tmp_path / "bad")
    launch(recipe, 3, partial(bad_shard, BAD, LAST))
    assert outcome(recipe)["outcome"] == "diverged", "nobody is there to start it again"
    (back,) = events(recipe, "rollback")
    first = back["first_step"]
    stretch = ((first - 1) * 8, LAST * 8)
    assert (back["from_step"], back["to_step"], tuple(back["sequences"])) == (LAST, 10, stretch)
    assert BAD - 1 <= first <= BAD
    assert checkpoint(recipe, 10).is_dir(), "with keep_last 1 the one from before it began is there"

    launch(recipe, 0, partial(bad_shard, BAD, LAST), num_processes=2)
    assert (
        len(json.loads((recipe.parent / "runs/tiny" / ROLLBACKS).read_text())) == len(events(recipe, "rollback")) == 1
    )
    assert [record["step"] for record in steps(recipe)] == list(range(1, 25))
    before = [8 * step for step in range(first - 1)]
    positions = [*before, *range(stretch[1], stretch[1] + 8 * (24 - len(before)), 8)]
    assert [record["data_digest"] for record in steps(recipe)] == [digest_at(position) for position in positions]
    manifest = read_manifest(checkpoint(recipe, 24))
    assert manifest.sequences == positions[-1] + 8
    assert [(one["begin"], one["end"]) for one in manifest.state["rollbacks"]["stretches"]] == [stretch]


def test_without_lasting_progress_it_is_over_after_so_many_rollbacks(tmp_path):
    recipe = recipe_of(tmp_path, safety={"rollback": {"max": 1}, "max_bad_steps": 3})
    sabotage = partial(bad_shard, 8, 10**6)
    launch(recipe, 3, sabotage)
    launch(recipe, 3, sabotage)
    assert len(events(recipe, "rollback")) == 1
    assert "safety.rollback.max" in outcome(recipe)["reason"]


PLUGIN = "from functools import partial\nfrom tests.acceptance.test_rollback import bad_shard\nbad_shard(12, 21)\n"


@pytest.mark.long
def test_a_launch_goes_back_by_itself_and_ends_with_the_bits_of_a_run_that_never_had_the_data(tmp_path):
    recipe, straight = recipe_of(tmp_path / "bad", plugins=["spoils"]), recipe_of(tmp_path / "straight")
    (tmp_path / "spoils.py").write_text(PLUGIN)
    cluster = write_cluster(tmp_path, 2)
    words = [sys.executable, "-m", "trainer", "launch", str(cluster), str(recipe)]
    again = environment(PYTHONPATH=f"{PROJECT}:{tmp_path}")
    done = subprocess.run(words, env=again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(recipe)["outcome"] == "finished"
    (back,) = events(recipe, "rollback")
    assert [event["cause"] for event in events(recipe, "stop") if event["cause"] != "peer"] == ["rollback", "finished"]
    launch(straight, 0, partial(stepped_over, tuple(back["sequences"])), num_processes=2)
    assert final_bytes(recipe) == final_bytes(straight)


def flipped_bit(step, rank):
    """One bit of one weight of one rank flips after a step, once."""
    from trainer.run import verdict

    whole = verdict.judge_digests

    def judge(run):
        if (run.progress.step, run.accelerator.process_index) == (step, rank):
            next(run.bare_model.parameters()).data.view(-1).view(torch.int32)[5] ^= 1
        return whole(run)

    verdict.judge_digests = judge


@pytest.mark.parametrize(("num_processes", "ranks"), [(3, [2]), pytest.param(2, [0, 1], marks=pytest.mark.long)])
def test_a_flipped_bit_is_found_and_the_run_goes_back_to_when_all_agreed(tmp_path, num_processes, ranks):
    batch = {"global_batch": 2 * num_processes, "safety": {"digest_every_steps": 8}}
    recipe, straight = recipe_of(tmp_path / "flipped", **batch), recipe_of(tmp_path / "straight", **batch)
    launch(recipe, 3, partial(flipped_bit, 13, num_processes - 1), num_processes=num_processes)
    (differs,), (back,) = events(recipe, "digest_differs"), events(recipe, "rollback")
    assert (differs["step"], differs["ranks"], differs["agreed"]) == (16, ranks, 8)
    assert (back["from_step"], back["to_step"]) == (16, 5)
    assert [path.name for path in checkpoint(recipe, 5).parent.glob("step-*")] == ["step-00000005"], "keep_last is 1"
    launch(recipe, 0, None, num_processes=num_processes)
    launch(straight, 0, None, num_processes=num_processes)
    assert len(events(recipe, "rollback")) == 1
    assert final_bytes(recipe) == final_bytes(straight)


def noisy_shard(first_step, last_step):
    """The batches of these steps of a run that never went back are noise: their losses are finite, and high."""
    from trainer import loop

    whole = loop.accumulate_gradients

    def accumulate(run, batch):
        if first_step <= batch.first_sequence // batch.num_sequences + 1 <= last_step:
            generator = np.random.default_rng(batch.first_sequence)
            for micro_batch in batch.micro_batches:
                for tokens in (micro_batch.inputs, micro_batch.labels):
                    tokens.copy_(torch.from_numpy(generator.integers(0, 257, tokens.shape)))
        return whole(run, batch)

    loop.accumulate_gradients = accumulate


@pytest.mark.long
def test_a_run_that_diverges_with_finite_losses_ends_as_well_as_one_whose_data_never_led_it_there(tmp_path):
    changes = {"max_steps": 320, "evaluation": {"every_steps": 320, "sample_tokens": 0}}
    recipe, told = recipe_of(tmp_path / "bad", **changes), recipe_of(tmp_path / "told", **changes)
    launch(recipe, 3, partial(noisy_shard, 201, 280), num_processes=2)
    (back,) = events(recipe, "rollback")
    assert (back["first_step"], back["to_step"]) == (200, 195) and 216 <= back["from_step"] <= 250
    assert all(np.isfinite(record["loss"]) for record in steps(recipe))
    launch(recipe, 0, partial(noisy_shard, 201, back["sequences"][1] // 8), num_processes=2)
    launch(told, 0, partial(stepped_over, tuple(back["sequences"])), num_processes=2)
    assert final_bytes(recipe, 320) == final_bytes(told, 320)
    never = []
    for seed in (1337, 1, 2):
        straight = recipe_of(tmp_path / f"never {seed}", **changes, seed=seed)
        launch(straight, 0, None)
        never.append(records(straight)[-1]["val_loss"])
    spread = max(never) - min(never)
    print("recovered", records(recipe)[-1]["val_loss"], "never had it", never)
    assert min(never) - spread <= records(recipe)[-1]["val_loss"] <= max(never) + spread
