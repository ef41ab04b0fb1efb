"""The facts of an end, from a journal that is written here as a run writes it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from tests.commands import trainer
from trainer.config.load import dump, load
from trainer.config.unattended import RestartConfig
from trainer.ending.causes import Cause
from trainer.ending.outcome_file import write_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import ConfigError
from trainer.journal import JOURNAL, Journal, read_events
from trainer.restart.decide import decide
from trainer.restart.ends import Witness, adapted_micro_batch, end_of, is_enabled, lacks_room, memory_conditions
from trainer.supervise import adapted, as_started

CONFIG = SimpleNamespace(
    micro_batch=8, restart=RestartConfig(window_hours=2.0), checkpoint=SimpleNamespace(max_disk_bytes=None)
)


def write(folder, *events):
    journal = Journal(folder)
    for event, facts in events:
        journal.write(event, **facts)


def launch(*events):
    return [("launch", {}), *events]


def died(step, cause="exception", reason="RuntimeError: no", **facts):
    return [("resume", {"step": max(0, step - 3)}), ("stop", {"cause": cause, "step": step, "reason": reason, **facts})]


@pytest.fixture
def ended(tmp_path):
    def facts(*events, outcome="failed"):
        write(tmp_path, *events)
        write_outcome(tmp_path, Outcome(outcome), step=9, reason="why")
        return end_of(CONFIG, tmp_path, tmp_path / "checkpoints", Outcome(outcome).exit_code)

    return facts


def test_the_cause_is_that_of_the_process_that_knows_it(ended):
    end = ended(
        *launch(
            ("stop", {"cause": "peer", "step": 7}),
            ("stop", {"cause": "SIGKILL", "step": 7, "reason": "rank 1"}),
            ("stop", {"cause": "exception"}),
        )
    )
    assert (end.cause, end.words, end.step, end.outcome, end.micro_batch) == ("SIGKILL", "rank 1", 7, Outcome.FAILED, 8)
    assert (end.num_same, end.num_stuck, end.num_restarts) == (1, 0, 0)


def test_a_launch_that_says_nothing_is_of_an_unknown_cause_and_its_words_are_the_outcomes(ended):
    end = ended(*launch(("train", {"step": 4})))
    assert (end.cause, end.words, end.step) == (Cause.UNKNOWN, "why", 4)


def test_failures_are_the_same_by_cause_step_and_words_but_for_their_numbers(ended):
    again = ("restart", {})
    first = launch(*died(7, reason="RuntimeError: at 0x7f12 of process 41"))
    end = ended(*first, again, *died(7, reason="RuntimeError: at 0x7f99 of process 57"))
    assert (end.num_same, end.num_stuck, end.num_restarts) == (2, 1, 1)
    assert ended(again, *died(8, reason="RuntimeError: at 0x7f99 of process 57")).num_same == 1
    assert ended(again, *died(8, reason="ValueError")).num_same == 1
    for number, name in enumerate(("tmpab3c/x", "tmpqwyz/x", "3f2a9c"), start=1):
        assert ended(again, *died(9, reason=f"OSError: /tmp/{name}: gone")).num_same == (number if number < 3 else 1)


def test_a_restart_that_comes_further_is_progress(ended):
    again = ("restart", {})
    assert ended(*launch(*died(7)), again, *died(7), again, *died(6)).num_stuck == 2
    assert ended(again, ("save", {"step": 8}), ("stop", {"cause": "SIGKILL"})).num_stuck == 0


def test_restarts_count_within_the_window_and_waiting_for_gpus_is_none(tmp_path, ended):
    now = datetime.now(UTC)
    lines = [{"time": (now - timedelta(hours=hours)).isoformat(), "event": "restart"} for hours in (3, 1.5, 1)]
    lines.append({"time": now.isoformat(), "event": "waiting", "what": "gpus"})
    (tmp_path / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert ended().num_restarts == 2


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75])
@pytest.mark.parametrize("before", ["interrupted", "finished", "running", "failed"])
def test_how_a_launch_ended_is_said_by_its_exit_code_where_the_outcome_is_of_an_earlier_one(
    ended, tmp_path, code, before
):
    """One that was killed while it imported says nothing, and a full disk takes no word."""
    ended(*launch(("stop", {"cause": "interrupted", "step": 7})), *launch(), outcome=before)
    end = end_of(CONFIG, tmp_path, tmp_path / "checkpoints", code)
    assert (end.outcome.exit_code, end.cause) == (code, Cause.UNKNOWN)
    assert decide(end, CONFIG.restart).do == ("restart" if code == 1 else "stop")


def test_a_run_that_fails_after_it_was_asked_to_stop_is_not_started_again(ended):
    asked = ("request", {"do": "stop", "step": 7})
    end = ended(*launch(asked, *died(7, cause="disk")))
    assert end.was_asked_to_stop and decide(end, CONFIG.restart).do == "stop"
    assert not ended(*launch(("request", {"do": "save"}), *died(8))).was_asked_to_stop


def test_where_the_disk_takes_no_journal_the_restarts_are_counted_all_the_same(ended):
    witness = Witness()
    for number in range(4):
        end = witness.add(ended(), window_hours=1.0, now=100.0 * number)
        assert (end.num_restarts, end.num_stuck) == (number, number)
        witness.restarts(now=100.0 * number)
    assert witness.add(ended(), window_hours=1.0, now=3750.0).num_restarts == 2, "the others are out of the window"
    assert witness.add(replace(end, step=5), window_hours=1.0, now=3750.0).num_stuck == end.num_stuck


def test_room_is_lacking_where_the_newest_checkpoint_would_not_fit_again(tmp_path, monkeypatch):
    assert not lacks_room(CONFIG, tmp_path, tmp_path / "none")
    monkeypatch.setattr("trainer.restart.ends.LEAST_BYTES", 50)
    for step in (10, 20):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "model.safetensors").write_bytes(b"x" * 100)
    for free, lacks in ((99, True), (100, False)):
        monkeypatch.setattr("trainer.restart.ends.files.free_bytes", lambda folder, free=free: free)
        assert lacks_room(CONFIG, tmp_path, tmp_path) is lacks
    bound = SimpleNamespace(checkpoint=SimpleNamespace(max_disk_bytes=1000))
    for free, lacks in ((99, False), (49, True)):
        monkeypatch.setattr("trainer.restart.ends.files.free_bytes", lambda folder, free=free: free)
        assert lacks_room(bound, tmp_path, tmp_path) is lacks, "which makes room itself, but for its words"
    end = end_of(CONFIG, tmp_path, tmp_path, 1)
    assert (end.older_step, end.has_saved) == (10, True)


def asked(*words):
    return load("shakespeare", ["global_batch=16", "micro_batch=8", *words]).config


def test_a_micro_batch_that_was_learnt_holds_until_a_person_gives_another_or_memory_is_asked_for_less(tmp_path):
    for was, now in ((8, 4), (4, 2)):
        facts = {"configured": 8, "was": was, "now": now, "conditions": memory_conditions(asked())}
        write(tmp_path, ("micro_batch", facts))
    assert adapted_micro_batch(tmp_path, asked()) == 2
    for other in (["micro_batch=16"], ["sequence_length=64"], ["model.gradient_checkpointing=true"]):
        assert adapted_micro_batch(tmp_path, asked(*other)) is None
    assert adapted_micro_batch(tmp_path / "none", asked()) is None


def test_a_typed_micro_batch_that_did_not_fit_is_not_launched_again(project, cluster):
    """The words of a restart are those that were typed."""
    words = [cluster(), "shakespeare", "name=mine", "global_batch=16", "micro_batch=8"]
    facts = {"configured": 8, "was": 8, "now": 4, "conditions": memory_conditions(asked())}
    write(project / "runs" / "mine", ("micro_batch", facts))
    checked = adapted(words)
    assert checked.config.micro_batch == 4
    assert checked.command[-1] == "micro_batch=4"


def test_a_bare_accelerate_launch_goes_on_with_what_was_learnt_too(project, monkeypatch):
    write(project / "runs" / "mine", ("micro_batch", {"configured": 8, "was": 8, "now": 4}))
    taken = []
    monkeypatch.setattr("trainer.session.run_session", lambda config: taken.append(config.micro_batch) or 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for typed in (8, 4):
        assert trainer("train", "shakespeare", "name=mine", "global_batch=16", f"micro_batch={typed}").code == 0
    assert taken == [4, 4]


def test_gpus_that_a_run_had_are_waited_for_from_its_first_start_after_a_reboot_on(project, cluster, monkeypatch):
    here = [1, 1, 1]
    monkeypatch.setattr("trainer.config.cluster.count_gpus", lambda: here.pop(0) if here else 2)
    monkeypatch.setattr("trainer.supervise.wait_seconds", lambda number: 0.0)
    words = [cluster(use_cpu=None), "shakespeare", "name=mine", "restart.enabled=true"]
    with pytest.raises(ConfigError):
        adapted(words)  # which never began, so that the words are wrong
    write(project / "runs" / "mine", ("start", {"processes": 2}))
    here[:] = [1, 1, 1]
    assert adapted(words).cluster.num_processes == 2
    assert [event["what"] for event in read_events(project / "runs" / "mine", "waiting")] == ["gpus"]


def test_a_run_that_was_given_up_and_is_started_again_has_all_its_restarts(ended):
    assert ended(*launch(*died(7)), ("restart", {}), ("restart", {})).num_restarts == 2
    assert ended(("gave_up", {}), *launch(*died(8)), ("restart", {}), *died(9)).num_restarts == 1


def test_a_clock_that_was_set_back_makes_no_restart_of_long_ago_recent(tmp_path, ended):
    then = (datetime.now(UTC) + timedelta(hours=100)).isoformat()
    (tmp_path / JOURNAL).write_text(f"{json.dumps({'time': then, 'event': 'restart'})}\n" * 3)
    assert ended().num_restarts == 0


@pytest.mark.parametrize(
    ("enabled", "environment", "expected"),
    [
        ("auto", {}, True),
        ("auto", {"SLURM_JOB_ID": "7"}, False),
        ("auto", {"TRAINER_RESTART": "off"}, False),
        (True, {"SLURM_JOB_ID": "7", "TRAINER_RESTART": "off"}, True),
        (False, {}, False),
    ],
)
def test_under_a_scheduler_it_starts_again_only_where_a_person_says_so(enabled, environment, expected):
    assert is_enabled(RestartConfig(enabled=enabled), environment) is expected


def test_a_recipe_that_is_edited_while_a_run_trains_changes_nothing_at_its_restart(project, cluster, tmp_path):
    recipe = tmp_path / "mine-recipe.yaml"
    recipe.write_text("base: shakespeare\nname: mine\nseed: 3\n")
    words = [cluster(), str(recipe), "global_batch=16"]
    checked = adapted(words)
    recipe.write_text("base: shakespeare\nname: mine\nsed: 4\n")
    assert as_started(words, checked) == words, "the launch wrote nothing down"
    (project / "runs" / "mine").mkdir(parents=True)
    kept = project / "runs" / "mine" / "config.yaml"
    kept.write_text(dump(checked.config))
    again = adapted([*as_started(words, checked), "resume_from_checkpoint=latest"])
    assert (again.config, again.cluster) == (checked.config, checked.cluster)
    kept.write_text(dump(checked.config.model_copy(update={"seed": 5})))
    assert as_started(words, checked) == words, "those are an earlier launch's"
