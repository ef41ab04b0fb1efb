import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.strategies import json_values
from trainer.checkpoint.resume.crash_loops import suspects
from trainer.ending.causes import Cause
from trainer.journal import JOURNAL, Journal, read_events

facts = st.dictionaries(st.sampled_from(["step", "text", "inner", "steps"]), json_values)


@settings(deadline=None)
@given(st.lists(facts, max_size=6))
def test_events_read_back_as_they_were_written(written):
    with tempfile.TemporaryDirectory() as folder:
        for each in written:
            Journal(Path(folder)).write("save", **each)
        read = [
            {key: value for key, value in event.items() if key not in ("time", "event")}
            for event in read_events(Path(folder))
        ]
    assert read == written


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0, 1)), min_size=1, max_size=8))
def test_wherever_lines_are_cut_short_every_whole_event_is_read(events):
    whole = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / JOURNAL
        for step, kept_fraction in events:
            before = path.stat().st_size if path.exists() else 0
            Journal(Path(folder)).write("save", step=step)
            added = path.read_bytes()[before:]
            cut = before + round(kept_fraction * len(added))
            if kept_fraction < 1:
                with open(path, "r+b") as file:
                    file.truncate(cut)
            if (
                path.stat().st_size >= before + len(added) - 1
            ):  # without its last byte, the end of the line, it is whole
                whole.append(step)
        assert [event["step"] for event in read_events(Path(folder))] == whole


some = st.integers(0, 1)
odd = st.fixed_dictionaries(
    {"event": st.sampled_from(["start", "resume", "save", "stop", "prune"])},
    optional={
        "step": some | json_values,
        "digest": some,
        "cause": st.sampled_from(sorted(Cause)) | json_values,
        "fingerprint": st.none() | some,
    },
)
resumes = st.fixed_dictionaries({"event": st.just("resume"), "step": some, "digest": some})
deaths = st.fixed_dictionaries(
    {"event": st.just("stop"), "step": some, "cause": st.sampled_from(["exception", "exception", "fault", "SIGKILL"])}
)
launches = st.tuples(st.just({"event": "start"}), resumes, deaths)
events = st.lists(launches | st.tuples(odd), max_size=20).map(lambda parts: [event for part in parts for event in part])


@given(events)
def test_no_journal_however_odd_makes_a_checkpoint_suspect_without_three_failures_of_the_trainers_own(story):
    num_own = sum(event["event"] == "stop" and event.get("cause") in ("exception", "fault") for event in story)
    found = suspects(story)
    resumed = {
        event.get("step") for event in story if event["event"] == "resume" and isinstance(event.get("step"), int)
    }
    assert set(found) <= resumed
    assert len(found) <= num_own // 3


@given(events, st.integers(1, 5))
def test_more_deaths_are_asked_for_and_fewer_are_suspect(story, num_deaths):
    assert suspects(story, num_deaths=num_deaths + 1).keys() <= suspects(story, num_deaths=num_deaths).keys()
