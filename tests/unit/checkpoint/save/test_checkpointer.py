import logging
import re
import shutil

import pytest
import torch

from tests.messages import logged, refuses
from tests.small_checkpoints import flip
from tests.small_runs import Small
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import folder_bytes, verify
from trainer.checkpoint.resume.diverged import never_went_well
from trainer.checkpoint.save.room import expected_bytes
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.journal import read_events
from trainer.step_result import SaveRequest


@pytest.fixture
def run(store):
    small = Small(store)
    small.step()
    return small


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_steps": 5}, {5: "periodic", 10: "periodic", 15: "periodic", 20: "periodic"}),
        ({"keep_every_steps": 10}, {10: "every", 20: "every"}),
        (
            {"keep_epochs": 1, "every_steps": 7},
            {7: "periodic", 10: "epoch", 14: "periodic", 20: "epoch", 21: "periodic"},
        ),
        ({}, {}),
    ],
)
def test_what_is_due_by_the_step_alone(store, settings, expected):
    run = Small(store, CheckpointConfig(asynchronous=False, **settings))
    due = {}
    for step in range(1, 23):
        run.state.advance(4, 32)
        if reason := run.checkpointer.due():
            due[step] = reason
    assert due == expected


def test_a_run_goes_on_to_the_bit_after_a_restore(run, store):
    run.save("best", val_loss=2.0)
    run.step()
    expected = run.everything()
    again = Small(store)
    again.resume()
    assert again.state.progress.step == 1
    again.step()
    assert again.everything() == expected


def test_a_save_is_a_sound_checkpoint_that_everyone_may_read(run, store):
    run.save(val_loss=2.0)
    path = store.path(1)
    manifest = read_manifest(path)
    assert (
        verify(path) == []
        and {"model.safetensors", "optimizer.bin", "random_states_0.json", "config.yaml"} <= manifest.files.keys()
    )
    assert (manifest.reason, manifest.loss, manifest.val_loss, manifest.tokens) == ("periodic", 1.5, 2.0, 32)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}
    assert run.synced == [1], "the metrics were durable before the commit"


def test_one_step_is_saved_once(run, store, monkeypatch):
    run.save()
    monkeypatch.setattr(run.accelerator, "save_state", lambda *_: pytest.fail("saved again"))
    run.save("final")
    again = Small(store)
    again.resume()
    monkeypatch.setattr(again.accelerator, "save_state", lambda *_: pytest.fail("saved again"))
    again.save("final")


def test_old_checkpoints_go_after_a_save(run, store):
    for _ in range(4):
        run.save()
        run.step()
    assert [entry.step for entry in store.entries()] == [4, 3] and (store.folder / "latest").is_symlink()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_failed_save_is_a_counted_warning_and_three_in_a_row_end_the_run(run, store, monkeypatch, caplog, error):
    run.save()

    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run.accelerator, "save_state", fails)
        for number in (1, 2):
            run.step()
            run.save()
            assert f"the next save tries again ({number} of 3)" in caplog.text
        run.step()
        run.save()
        assert run.checkpointer.save_request(0) == SaveRequest.GIVE_UP
        with pytest.raises(CheckpointError, match="failure 3 in a row.*resume_from_checkpoint=latest"):
            run.checkpointer.give_up()
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == []
    run.save()
    assert [entry.step for entry in store.entries()] == [4, 1]


def test_a_success_ends_the_row_of_failures_and_is_told(run, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(run.store, "commit", lambda *_: (_ for _ in ()).throw(OSError("full")))
            run.save()
        run.step()
        run.save()
        run.step()
    assert caplog.text.count("(1 of 3)") == caplog.text.count(": checkpoint (periodic)") == 3
    run.save()
    assert caplog.text.count(": checkpoint (periodic)") == 3, "the journal has it, as it has all"


@pytest.mark.parametrize("reason", ["final", "interrupt"])
def test_a_last_save_that_fails_is_an_error_at_once(run, monkeypatch, reason):
    monkeypatch.setattr(run.store, "begin", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with refuses(CheckpointError, "step 1", "full", "resume_from_checkpoint=latest"):
        run.save(reason)


@pytest.mark.parametrize("work", ["prune", "point_links"])
def test_a_checkpoint_is_saved_though_nothing_could_be_tidied_after_it(run, store, monkeypatch, caplog, work):
    monkeypatch.setattr(
        store, work, lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted"))
    )
    for reason in ("periodic", "periodic", "periodic", "final"):
        run.save(reason)
        run.step()
    assert store.entries()[0].step == 4 and "PermissionError" in caplog.text


def test_leftovers_are_swept_before_a_checkpoint_is_looked_for(run, store, caplog):
    caplog.set_level(logging.INFO)
    store.begin(9)
    assert run.restorer.find("latest").path is None
    logged(caplog, ".staging-00000009")


def test_what_cannot_be_looked_at_is_an_error_in_a_sentence(run, store, monkeypatch):
    monkeypatch.setattr(store, "sweep", lambda: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(CheckpointError, match="cannot be used .*Read-only file system.*; fix that and start again"):
        run.restorer.find("latest")


def test_a_checkpoint_of_another_run_is_refused(run, store):
    run.save()
    with refuses(CheckpointError, "seed", "2", "1"):
        Small(store, identity={"seed": 2}).restorer.find("latest")


def test_damaged_and_newer_folders_are_taken_out_of_the_way(run, store, caplog):
    for val_loss in (1.0, 2.0):
        run.save(val_loss=val_loss)
        run.step()
    again = Small(store)
    again.resume("best")
    assert [entry.step for entry in store.entries()] == [1]
    logged(caplog, ".abandoned-step-00000002")
    run = Small(store)
    run.resume()
    run.step()
    run.save()
    flip(store.path(2) / "optimizer.bin")
    last = Small(store)
    last.resume()
    assert last.state.progress.step == 1
    logged(caplog, "step-00000002", "optimizer.bin")
    assert sorted(path.name for path in store.folder.glob(".*")) == [
        ".abandoned-step-00000002",
        ".damaged-step-00000002",
    ]


def test_a_checkpoint_whose_state_is_of_another_step_than_its_manifest_is_refused(run, store):
    run.save()
    resolution = run.restorer.find("latest")
    object.__setattr__(resolution.manifest, "step", resolution.manifest.step + 1)
    with refuses(CheckpointError, "resume_from_checkpoint"):
        Small(store).restorer.restore(resolution, "latest", lambda: None)


def test_another_number_of_processes_starts_the_streams_anew_and_says_so(run, store, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    run.save()
    resolution = run.restorer.find("latest")
    object.__setattr__(resolution.manifest, "world_size", 2)
    states = []
    for _ in range(2):
        again = Small(store)
        torch.manual_seed(len(states))
        again.restorer.restore(resolution, "latest", lambda: None)
        states.append(torch.get_rng_state().tolist())
    assert states[0] == states[1]
    logged(caplog, "1 process", "2")


def test_what_changed_since_the_checkpoint_is_told(run, store, caplog):
    caplog.set_level(logging.INFO)
    run.save()
    Small(store, precision="bf16", versions={"torch": "2", "new": "1"}).resume()
    logged(caplog, "step 1", "precision no -> bf16", "torch 1 -> 2")
    (event,) = [event for event in read_events(run.folder) if event["event"] == "change"]
    assert event["step"] == 1 and event["changes"] == {"precision": ["no", "bf16"], "torch": ["1", "2"]}


def test_another_optimizer_begins_with_moments_of_its_own_and_the_same_weights(run, store, caplog):
    caplog.set_level(logging.INFO)
    run.save()
    identity = {"seed": 1, "optimizer": "other"}
    with refuses(CheckpointError, "resume.allow_changes=[optimizer]"):
        Small(store, identity=identity).resume()
    again = Small(store, identity=identity, allowed_changes=("optimizer",))
    again.resume()
    assert "moments begin anew" in caplog.text and not again.optimizer.state
    assert again.state.progress.step == 1 and all(
        map(torch.equal, again.model.state_dict().values(), run.model.state_dict().values())
    )


def test_a_resume_beyond_max_steps_is_refused_with_both_numbers(run, store):
    run.save()
    run.step()
    run.save()
    Small(store, max_steps=2).restorer.find("latest")
    with refuses(CheckpointError, "max_steps", "1", "step 2"):
        Small(store, max_steps=1).restorer.find("latest")
    assert Small(store, max_steps=1).restorer.find("1").manifest.step == 1


def test_a_checkpoint_from_elsewhere_is_continued_here(run, store, tmp_path):
    run.save()
    shutil.move(store.path(1), tmp_path / "copy")
    again = Small(store)
    again.resume(str(tmp_path / "copy"))
    assert again.state.progress.step == 1
    assert [entry.step for entry in store.entries()] == [1], "the run has a copy of its own at once"
    assert store.entries()[0].manifest.origin == str(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    last = Small(store)
    last.resume("latest")
    assert last.everything() == again.everything()


def test_a_checkpoint_from_elsewhere_sets_every_checkpoint_of_the_other_branch_aside(run, store, tmp_path):
    run.save()
    shutil.copytree(store.path(1), tmp_path / "copy")
    run.step()
    run.save()
    Small(store).resume(str(tmp_path / "copy"))
    assert [entry.step for entry in store.entries()] == [1]
    assert {path.name for path in store.folder.glob(".abandoned-*")} == {
        ".abandoned-step-00000001",
        ".abandoned-step-00000002",
    }


def test_a_failed_save_whose_leftovers_cannot_be_removed_is_still_a_warning(run, store, monkeypatch, caplog):
    monkeypatch.setattr(store, "commit", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    monkeypatch.setattr(
        "trainer.files.remove_folder", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    run.save()
    assert "training goes on" in caplog.text
    logged(caplog, "Read-only file system")


def test_room_is_proved_for_what_the_run_will_keep(run, store, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    one = sum(expected_bytes(run.model, run.optimizer))
    assert one == 3 * 20 * 4
    monkeypatch.setattr("trainer.files.free_bytes", lambda path: 4 * one)
    run.checkpointer.check_room()
    logged(caplog, "960 bytes")
    monkeypatch.setattr("trainer.files.free_bytes", lambda path: 4 * one - 1)
    with refuses(CheckpointError, "960 bytes", "checkpoint.keep_last"):
        run.checkpointer.check_room()
    (store.folder / ".abandoned-step-00000009").mkdir(parents=True)
    (store.folder / ".abandoned-step-00000009" / "x").write_bytes(b"x" * 9999)
    with refuses(CheckpointError, "960 bytes"):
        run.checkpointer.check_room()


def test_room_for_the_next_is_made_before_the_first_step_where_a_bound_leaves_none(store):
    run = Small(store, policy=Policy(9, 0))
    for _ in range(4):
        run.step()
        run.save("every")
    bound = Small(store, policy=Policy(9, 0, max_disk_bytes=3 * folder_bytes(store.path(4))))
    bound.checkpointer.check_room(store.path(2))
    assert [entry.step for entry in store.entries()] == [4, 2], "what is being loaded stays"
    gone = [event["name"] for event in read_events(run.folder) if event["event"] == "prune"]
    assert gone == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize("what", ["weight", "exp_avg of bias"])
def test_a_save_that_training_waits_for_is_not_made_of_what_is_not_finite(run, store, what):
    run.save()
    run.step()
    with torch.no_grad():
        broken = run.model.weight if what == "weight" else run.optimizer.state[run.model.bias]["exp_avg"]
        broken.view(-1)[-1] = float("inf")
    assert run.checkpointer.save("final", loss=None, val_loss=None) == what
    assert [entry.step for entry in store.entries()] == [1]
    assert [(e["step"], e["tensor"]) for e in read_events(run.folder) if e["event"] == "not_saved"] == [(2, what)]


def test_going_back_to_the_best_names_those_of_which_nobody_knows_whether_they_are(run, store, caplog):
    run.save("best", val_loss=1.0)
    run.step()
    run.save("best", val_loss=2.0)
    flip(store.path(1) / "manifest.json", 9)
    run.resume("best")
    assert [path.name for path in store.folder.glob("step-*")].count("step-00000001") == 1
    assert any("step-00000001" in line and line.startswith("whether") for line in caplog.messages)
    assert [event["step"] for event in read_events(run.folder) if event["event"] == "refusal"] == [1]


def test_only_checkpoints_of_this_launch_are_taken_for_diverged_and_a_link_that_leads_nowhere_goes(run, store):
    run.save()
    run.step()
    again = Small(store)
    again.resume()
    again.step()
    again.save()
    again.checkpointer.leave_diverged(0)
    assert [entry.step for entry in store.entries()] == [1]
    fresh = Small(store)
    fresh.checkpointer.leave_diverged(1)
    assert store.entries() == [] and not (store.folder / "latest").is_symlink()
    assert [path.name for path in store.set_aside_folders()] == [".diverged-step-00000001", ".diverged-step-00000002"]


def test_a_run_may_start_over_only_when_all_that_it_ever_saved_has_diverged():
    def event(kind, step, **facts):
        return {"event": kind, "step": step, **facts}

    saved, aside = event("save", 1), event("set_aside", 1, reason="diverged")
    assert never_went_well([saved, aside]) and not never_went_well([]) and not never_went_well([aside, saved])
    assert not never_went_well([saved, event("save", 2), event("prune", 1), event("set_aside", 2, reason="diverged")])
    assert not never_went_well([event("resume", 7), saved, aside])


@pytest.mark.parametrize("max_lost_work_seconds", [60.0, float("inf")])
def test_the_forecast_counts_the_saves_at_steps_also_where_none_is_made_by_the_clock(
    store, caplog, max_lost_work_seconds
):
    caplog.set_level(logging.INFO)
    settings = CheckpointConfig(every_steps=5, asynchronous=False, max_lost_work_seconds=max_lost_work_seconds)
    run = Small(store, settings)
    for number in range(1, 16):
        run.step()
        run.checkpointer.stepped(0.01)
        run.checkpointer.save_request(0)
        if number % 5 == 0:
            run.save()
    (told,) = [line for line in caplog.messages if "checkpoints of" in line and "until the run ends" in line]
    assert re.search(r"(17|18|19) by checkpoint.every_steps", told) and not [
        line for line in caplog.messages if "0 bytes" in line
    ]
