"""A run killed anywhere and resumed to the end is, byte for byte, the run that was never killed."""

import random
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launching import (
    TINY_GPT2,
    checkpoint,
    final_bytes,
    outcome,
    records,
    start,
    steps,
    train,
    wait_for_step,
    write_recipe,
)
from tests.messages import line_of, says
from trainer.journal import read_events

VARIANTS = {
    "llama-muon": {"optimizer": {"name": "muon"}},
    "gpt2-dropout-adamw": {"model": {"config": TINY_GPT2}},
}


@pytest.fixture(
    scope="module",
    params=[("llama-muon", 1), ("gpt2-dropout-adamw", 1), ("gpt2-dropout-adamw", 2)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def straight(request, tmp_path_factory) -> tuple[Path, dict, int]:
    """The run that is never killed, for each variant and number of runes."""
    variant, num_processes = request.param
    folder = tmp_path_factory.mktemp("straight")
    recipe = write_recipe(folder, **VARIANTS[variant])
    train(recipe, num_processes=num_processes)
    return recipe, VARIANTS[variant], num_processes


def test_a_run_killed_three_times_equals_the_run_never_killed(straight, tmp_path):
    reference, variant, num_processes = straight
    recipe = write_recipe(tmp_path, **variant)
    generator = random.Random(num_processes)
    for stop_after in sorted(generator.sample(range(2, 23), 3)):
        run = start(recipe, num_processes=num_processes)
        wait_for_step(recipe, stop_after, run)
        run.kill()
        assert outcome(recipe)["outcome"] == "running"
    train(recipe, num_processes=num_processes)

    assert final_bytes(recipe) == final_bytes(reference)
    assert [r["step"] for r in steps(recipe)] == list(range(1, 25))
    for field in ("loss", "grad_norm", "data_digest", "lr", "tokens"):
        assert [r[field] for r in steps(recipe)] == [r[field] for r in steps(reference)], field
    validation = [(r["step"], r["val_loss"]) for r in records(recipe) if "val_loss" in r]
    assert validation == [(r["step"], r["val_loss"]) for r in records(reference) if "val_loss" in r]
    assert steps(recipe)[-1]["epoch"] > 3, "the run should cross the ends of epochs"
    drawn = EventAccumulator(str(tmp_path / "runs/tiny")).Reload()
    assert [event.step for event in drawn.Scalars("Loss/train")] == list(range(1, 25))
    assert [event.step for event in drawn.Scalars("Loss/validation")] == [8, 16, 24]


def test_replayed_steps_are_compared_and_said_to_be_exact(straight, tmp_path):
    reference, variant, num_processes = straight
    recipe = write_recipe(tmp_path, **variant, checkpoint={"every_steps": 12})
    run = start(recipe, num_processes=num_processes)
    wait_for_step(recipe, 20, run)
    run.kill()
    had = len(steps(recipe))
    train(recipe, num_processes=num_processes)
    # Where the machine is slow, a save by budget may come after the one at 16, or the writer may rescue a later snapshot.
    resumed = next((event["step"] for event in read_events(tmp_path / "runs/tiny") if event["event"] == "resume"), had)
    verdict = outcome(recipe).get("resume")
    assert 16 <= resumed <= had
    assert had == resumed or verdict == f"resume exact: {had - resumed}/{had - resumed} replayed steps bit-identical", (
        had,
        resumed,
        verdict,
    )
    lost = tmp_path / "runs/tiny/metrics.lost.jsonl"
    assert (
        len([line for line in lost.read_text().splitlines() if '"loss"' in line] if lost.exists() else [])
        == had - resumed
    )


def test_a_resume_that_is_not_exact_is_told(straight, tmp_path):
    """The proof can fail: one flipped bit in a record that was written of a lost step is found."""
    reference, variant, num_processes = straight
    if num_processes > 1:
        pytest.skip("one process shows it")
    recipe = write_recipe(tmp_path, **variant)
    for part in ("checkpoints", "runs"):
        shutil.copytree(reference.parent / part, tmp_path / part)
    shutil.rmtree(checkpoint(recipe, 24))
    curve = tmp_path / "runs/tiny/metrics.jsonl"
    lines = curve.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if '"step":22,' in line and '"loss"' in line)
    lines[place] = lines[place].replace('"loss":', '"loss":1')
    curve.write_text("\n".join(lines) + "\n")
    done = train(recipe)
    assert outcome(recipe)["resume"].startswith("resume NOT exact: at step 22 loss ")
    assert "resume NOT exact" in done


def test_a_newest_checkpoint_with_one_flipped_byte_is_passed_over_with_its_reason(straight, tmp_path):
    reference, variant, num_processes = straight
    if num_processes > 1:
        pytest.skip("one process shows it")
    recipe = write_recipe(tmp_path, **variant)
    for part in ("checkpoints", "runs"):
        shutil.copytree(reference.parent / part, tmp_path / part, symlinks=True)
    weights = checkpoint(recipe, 24) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    done = train(recipe)
    line_of(done, "step-00000024", "model.safetensors", "damaged")
    assert "resumed from" in done
    assert "step-00000020" in done
    assert (tmp_path / "checkpoints/tiny/.damaged-step-00000024").is_dir()
    assert final_bytes(recipe) == final_bytes(reference)


def test_called_again_a_finished_run_says_so_and_changes_nothing(straight):
    recipe, _, num_processes = straight
    before = final_bytes(recipe), records(recipe)
    done = train(recipe, num_processes=num_processes)
    says(done, "24 steps")
    assert (final_bytes(recipe), records(recipe)) == before


def test_three_ranks_resume_exactly_too(tmp_path):
    """With three ranks the order of summation in the gradient's reduction shows, unlike with two."""
    shape = {"global_batch": 12, "max_steps": 12, "optimizer": {"name": "adamw"}}
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    reference, recipe = (write_recipe(tmp_path / name, **shape) for name in ("straight", "killed"))
    train(reference, num_processes=3)
    run = start(recipe, num_processes=3)
    wait_for_step(recipe, 7, run)
    run.kill()
    train(recipe, num_processes=3)
    assert final_bytes(recipe, 12) == final_bytes(reference, 12)


def test_a_run_taken_back_and_killed_goes_on_from_where_it_came_to(tmp_path):
    """The command that went back to step 10 is started again after a crash: it must not go back a second time."""
    recipe = write_recipe(tmp_path, max_steps=20, checkpoint={"every_steps": 5, "keep_last": 9})
    train(recipe)
    run = start(recipe, "resume_from_checkpoint=10", "max_steps=120", "metrics.console_every_steps=100")
    wait_for_step(recipe, 31, run)
    run.kill()
    assert (tmp_path / "checkpoints/tiny/.abandoned-step-00000020").is_dir()
    said = train(recipe, "resume_from_checkpoint=10", "max_steps=120", "metrics.console_every_steps=100")
    says(said, "taken back to 10")
    assert "resume exact" in said or "compared" not in said
    assert [record["step"] for record in steps(recipe)] == list(range(1, 121))
    assert not list((tmp_path / "checkpoints/tiny").glob(".abandoned-step-0000003*"))
