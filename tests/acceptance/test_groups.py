"""Runs with `optimizer.groups`: exact under kills, frozen to the bit, and what changes at a resume is said."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from tests.commands import trainer
from tests.events import events_of
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
    write_cluster,
    write_recipe,
)
from tests.messages import line_of, says
from trainer.config.load import kept_settings
from trainer.journal import read_events

HEAD = {"match": "lm_head|embed|wte", "lr": 1e-3, "weight_decay": 0}
LOWER = {"match": r"(layers|h)\.0\.|embed|wte", "freeze": True}


def weights(recipe, step):
    return load_file(checkpoint(recipe, step) / "model.safetensors")


def changed(recipe, before, after):
    """The tensors that are not the same in two checkpoints."""
    ours, theirs = weights(recipe, before), weights(recipe, after)
    return {name for name in ours if not ours[name].equal(theirs[name])}


@pytest.mark.parametrize(
    ("optimizer", "model", "num_processes"),
    [("muon", None, 1), ("adamw", TINY_GPT2, 2)],
    ids=["llama-muon-1", "gpt2-adamw-2"],
)
def test_a_run_with_groups_that_is_killed_is_the_one_that_never_was_and_what_is_frozen_never_moves(
    optimizer, model, num_processes, tmp_path
):
    changes = {
        "optimizer": {"name": optimizer, "groups": [LOWER, HEAD | {"match": "norm|ln_", "weight_decay": None}]},
        **({"model": {"config": model}} if model else {}),
        "checkpoint": {"every_steps": 1, "keep_last": 30},
        "max_steps": 12,
    }
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    reference, recipe = (write_recipe(tmp_path / name, **changes) for name in ("straight", "killed"))
    said = train(reference, num_processes=num_processes)
    run = start(recipe, num_processes=num_processes)
    wait_for_step(recipe, 7, run)
    run.kill()
    train(recipe, num_processes=num_processes)
    assert final_bytes(recipe, 12) == final_bytes(reference, 12)
    assert [r["loss"] for r in steps(recipe)] == [r["loss"] for r in steps(reference)]
    moved = changed(reference, 1, 12)
    frozen = weights(reference, 12).keys() - moved
    assert frozen and frozen == {n for n in weights(reference, 12) if any(w in n for w in (".0.", "wte", "embed_tok"))}
    line_of(said, "optimizer.groups", LOWER["match"], "frozen")
    line_of(said, "snapshots", "frozen", "copied once")
    shown = trainer("checkpoints", "show", str(checkpoint(recipe, 12)), "--json")
    assert set(json.loads(shown.out)["frozen"]) == frozen


def test_rates_of_groups_follow_the_schedule_in_the_curve_and_in_tensorboard(tmp_path):
    recipe = write_recipe(
        tmp_path, optimizer={"name": "muon", "lr": 2e-3, "groups": [HEAD, {"match": "norm|layers.0", "lr": 1e-3}]}
    )
    train(recipe, "max_steps=6")
    for record in steps(recipe):
        rate = record["lr"] / 0.02  # the run's own, of Muon: the factor of the schedule
        assert record["optim/lr/lm_head_embed_wte"] == pytest.approx(1e-3 * rate, rel=1e-4)
        assert record["optim/lr/norm_layers_0"] == pytest.approx(1e-3 * rate, rel=1e-4)
        assert record["optim/lr/norm_layers_0_muon"] == pytest.approx(0.01 * rate, rel=1e-4)
    drawn = {event.step: event.value for event in events_of(recipe).Scalars("optim/lr/norm_layers_0_muon")}
    assert drawn == {r["step"]: pytest.approx(r["optim/lr/norm_layers_0_muon"]) for r in steps(recipe)}


def test_groups_may_change_at_a_resume_and_it_is_said_what_became_of_the_moments(tmp_path):
    recipe = write_recipe(tmp_path, optimizer={"groups": [LOWER]}, checkpoint={"every_steps": 8, "keep_last": 9})
    train(recipe, "max_steps=8")
    other = json.dumps([{"match": "lm_head", "freeze": True}, HEAD])
    overrides = ("max_steps=16", f"optimizer.groups={other}")
    dry = trainer("launch", str(write_cluster(tmp_path, 1)), str(recipe), *overrides, "--dry-run")
    said = train(recipe, *overrides)
    for text in (dry.out, said):
        line_of(text, "lm_head.weight", "frozen")
        line_of(text, "all others", "lr 0.003")
        line_of(text, "changed", "newly trained model.embed_tokens.weight", "newly frozen lm_head.weight")
        line_of(text, "changed", "optimizer.groups", LOWER["match"].replace("\\", "\\\\"))
    says(
        said,
        "newly trained: model.embed_tokens.weight",
        "moments begin at zero",
        "newly frozen: lm_head.weight",
        "moments are dropped",
    )
    (event,) = [event for event in read_events(tmp_path / "runs/tiny") if event["event"] == "change"]
    assert event["changes"]["newly frozen"] == ["trained", ["lm_head.weight"]]
    assert "model.layers.0.mlp.up_proj.weight" in event["changes"]["newly trained"][1]
    assert event["changes"]["optimizer.groups"] == [
        [LOWER],
        kept_settings(tmp_path / "runs/tiny/config.yaml")["optimizer.groups"],
    ]
    assert "lm_head.weight" not in changed(recipe, 8, 16)
    assert changed(recipe, 8, 16) == weights(recipe, 16).keys() - {"lm_head.weight"}


def test_a_run_without_groups_goes_on_with_them_and_without_again_to_the_bit_where_they_change_nothing(tmp_path):
    (tmp_path / "plain").mkdir()
    plain = write_recipe(tmp_path / "plain")
    train(plain)
    shutil.copytree(tmp_path / "plain", tmp_path / "grouped", symlinks=True)
    grouped = write_recipe(
        tmp_path / "grouped", optimizer={"groups": [{"match": "norm"}, HEAD | {"lr": 0.003, "weight_decay": 0.1}]}
    )
    shutil.rmtree(checkpoint(grouped, 24))
    said = train(grouped)
    assert final_bytes(grouped)["model.safetensors"] == final_bytes(plain)["model.safetensors"]
    assert [r["loss"] for r in steps(grouped)] == [r["loss"] for r in steps(plain)]
    line_of(said, "4 lost steps", "optimizer.groups")
    shutil.rmtree(checkpoint(grouped, 24))
    train(write_recipe(tmp_path / "grouped"))
    assert final_bytes(grouped) == final_bytes(plain)


def test_what_is_frozen_of_a_model_that_was_begun_from_is_the_source_s_to_the_bit(tmp_path):
    train(write_recipe(tmp_path), "max_steps=5")
    source = tmp_path / "runs/tiny/exported"
    wanted = {"model": {"config": {}, "init_from": str(source)}, "optimizer": {"groups": [LOWER]}}
    train(write_recipe(tmp_path, name="continued", max_steps=5, **wanted))
    before, after = (
        load_file(folder / "model.safetensors") for folder in (source, tmp_path / "runs/continued/exported")
    )
    same = {name for name in before if before[name].equal(after[name])}
    assert same == {name for name in before if ".0." in name or "embed" in name}


@pytest.mark.parametrize(
    ("groups", "tokens"),
    [
        ("[{match: lm_haed}]", ("'lm_haed'", "lm_head.weight")),
        ("[{match: norm}, {match: final_norm|model.norm}]", ("'final_norm|model.norm'", "'norm'", "model.norm.weight")),
        ('[{match: ".", freeze: true}]', ("freezes all", "leave freeze out")),
        ("[{match: norm, weight_decay: 0.1}]", ("'norm'", "weight_decay 0.1")),
    ],
)
def test_an_entry_that_can_do_nothing_ends_a_launch_and_a_dry_run_with_2(groups, tokens, tmp_path):
    recipe = write_recipe(tmp_path)
    dry = trainer("launch", str(write_cluster(tmp_path, 1)), str(recipe), f"optimizer.groups={groups}", "--dry-run")
    assert dry.code == 2
    says(dry.err, "optimizer.groups", *tokens)
    said = train(recipe, f"optimizer.groups={groups}", exit_code=2)
    says(said, "optimizer.groups", *tokens)
    assert outcome(recipe)["outcome"] == "refused" and records(recipe) == []
