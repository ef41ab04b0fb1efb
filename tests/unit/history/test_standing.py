"""How runs stand: on a screen, in a table, for programs, and after a month."""

import json
from dataclasses import asdict
from datetime import timedelta

import pytest

from tests.messages import line_of, says
from tests.month import write_thinly
from tests.unit.test_month import at_most
from tests.written_history import BEGAN, EVENTS, at, event, start, write_month
from trainer import lease, locks
from trainer.ending.outcome_file import write_outcome
from trainer.history.screen import as_json, listing, screen
from trainer.history.standing import NUM_EVENTS, Standing, standing_of, standings

NOW = BEGAN + timedelta(seconds=11600)
GPU = {
    "gpu/utilization_fraction/0": 0.98,
    "gpu/memory_bytes/0": 6e10,
    "gpu/temperature_celsius/0": 61,
    "gpu/power_watts/0": 650,
    "gpu/slowed_by_heat/0": 1,
}
SAVED = {"checkpoint/worst_lost_work_seconds": 75.0, "checkpoint/overhead_fraction": 0.004, "disk/days_until_full": 3.0}


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A run that is alive, at step 200 of 1,000."""
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    folder = write_month(tmp_path, events=EVENTS[:-1], settings={"max_steps": 1000})
    write_outcome(folder, "running", step=198, reason="training")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[-12] |= GPU | SAVED
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with locks.take(folder / ".lock"):
        yield folder


def test_a_run_that_is_alive_says_all_that_a_person_asks(running):
    found = standing_of(running, NOW)
    assert (found.state, found.is_alive, found.step, found.max_steps) == ("running", True, 200, 1000)
    assert found.seconds_left == 800 * 36
    assert (found.val_loss, found.val_step) == (3.3, 200)
    assert (found.saved_step, found.saved_bytes) == (200, 1_500_000_000)
    assert found.saved_seconds_ago == 11600 - (9480 + 50 * 36)
    assert found.lost_now_seconds == found.saved_seconds_ago + 9.5 == found.worst_lost_work_seconds
    assert found.disk_days_until_full == 3
    assert found.gpus == [{"gpu": 0, **{key.split("/")[1]: value for key, value in GPU.items()}}]
    assert found.num_restarts == 3
    assert [each["event"] for each in found.events[:3]] == ["rollback", "resume", "start"]
    assert len(found.events) == NUM_EVENTS
    assert json.loads(as_json(found)) == asdict(found)


def test_the_most_that_could_have_been_lost_is_of_the_launch_before_too(running):
    with open(running / "journal.jsonl", "a") as journal:
        for each in (*start(11000, 11010, step=200), event(11595, "save", step=200)):
            journal.write(json.dumps(each | ({"worst_seconds": 400.0} if each["event"] == "train" else {})) + "\n")
    assert standing_of(running, NOW).worst_lost_work_seconds == 400


def test_a_run_whose_processes_are_gone_was_killed(tmp_path):
    folder = write_month(tmp_path, events=EVENTS[:-1])
    write_outcome(folder, "running", step=198, reason="training")
    found = standing_of(folder, NOW)
    assert (found.state, found.is_alive, found.step, found.seconds_left, found.lost_now_seconds) == (
        "killed",
        False,
        200,
        None,
        None,
    )


def test_a_run_between_two_starts_is_one_that_its_supervisor_restarts(tmp_path):
    folder = write_month(tmp_path, events=EVENTS[:-1])
    write_outcome(folder, "failed", step=198, reason="rank 1 was killed")
    with locks.lock_supervision(folder):
        lease.write_record(folder / locks.SUPERVISOR, lease.process(), since=at(9430))
        found = standing_of(folder, NOW)
        supervisor = "restarting", str(lease.process()), at(9430)
        assert (found.state, found.supervised_by, found.supervised_since) == supervisor
        line_of(screen(found, NOW, 80), "supervised", lease.process(), "36m 10s", "3 restarts")
    found = standing_of(folder, NOW)
    assert (found.state, found.supervised_by) == ("failed", None)


@pytest.mark.parametrize("width", [80, 160])
def test_a_run_fits_on_one_screen(running, width):
    said = screen(standing_of(running, NOW), NOW, width)
    lines = said.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    assert not [line for line in lines if line.endswith("...") and not line.startswith("    ")]
    line_of(said, "progress", "step 200 of 1,000", "20.0 %", "200k tokens")
    line_of(said, "left", "8h 0m", "01 Nov")
    line_of(said, "last save", "step 200", "5m 20s ago", "1.5 GB")
    line_of(said, "disk", "3d 0h", "after the run ends")
    line_of(said, "GPUs", "98 %", "61 C", "heat")
    line_of(said, "at risk", "5m 30s of training")


def test_all_runs_stand_in_a_table_those_that_live_first(running, tmp_path):
    write_month(tmp_path, "another")
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "runs" / "begun").mkdir()
    write_outcome(tmp_path / "runs" / "begun", "refused", step=0, reason="no data")
    found = standings(tmp_path / "runs", NOW)
    assert [each.name for each in found] == ["mine", "another", "begun"]
    for width in (80, 160):
        said = listing(found, width)
        assert max(map(len, said.splitlines())) <= width
        line_of(said, "mine", "running", "200", "20.0 %")
    says(listing(found, 160).splitlines()[0], "restarts", "tokens/s")
    narrow = listing(found, 60)
    says(narrow.splitlines()[0], "state", "done", "left")
    assert "restarts" not in narrow and "..." not in narrow


def test_a_run_of_which_nothing_is_known_has_a_screen_too():
    says(screen(Standing("mine", "runs/mine", "unknown", "", None), NOW, 80), "mine", "unknown", "nobody can know")


def test_a_month_of_steps_is_answered_at_once_in_little_memory(tmp_path):
    folder = tmp_path / "runs" / "month"
    write_thinly(folder, steps=2_000_000)
    with at_most(24):
        found = standing_of(folder, NOW)
    assert (found.step, found.saved_step) == (2_000_000, 1_999_800)
    assert found.val_step is not None


def test_a_folder_whose_numbers_are_damaged_does_not_keep_the_others_from_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    events = [{**one, "seconds": "x", "worst_seconds": [1]} for one in EVENTS]
    folder = write_month(tmp_path, events=events)
    (folder / "config.yaml").write_text("name: mine\nmax_steps: many\n")
    standing = standing_of(folder, NOW)
    assert standing.max_steps is None
    assert "mine" in screen(standing, NOW, 80) and "mine" in listing([standing], 80)
