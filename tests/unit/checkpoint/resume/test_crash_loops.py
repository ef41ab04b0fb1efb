import pytest

from trainer.checkpoint.resume.crash_loops import all_suspect_text, suspects


def launch(step=30, *stops, digest="a", fingerprint="f", saves=()):
    """The events of one launch that goes on from `step`; a stop is (cause, step)."""
    return [
        {"event": "start", "fingerprint": fingerprint},
        {"event": "resume", "step": step, "digest": digest},
        *({"event": "save", "step": saved, "digest": f"of {saved}"} for saved in saves),
        *({"event": "stop", "cause": cause, "step": at, "reason": f"{cause} at {at}"} for cause, at in stops),
    ]


def story(*launches):
    return [event for events in launches for event in events]


DEATH = launch(30, ("exception", 37))


def test_three_deaths_in_a_row_at_one_step_make_a_checkpoint_suspect_and_two_do_not():
    assert suspects(story(DEATH, DEATH)) == {}
    assert suspects(story(DEATH, DEATH, DEATH)) == {
        30: "its last 3 starts that got so far all died at step 37 (exception at 37)"
    }
    assert "its last 4 starts" in suspects(story(*[DEATH] * 4))[30]
    assert list(suspects(story(DEATH, DEATH), num_deaths=2)) == [30]


@pytest.mark.parametrize("cause", ["exception", "fault"])
def test_the_trainers_own_failures_count(cause):
    assert 30 in suspects(story(*[launch(30, (cause, 37))] * 3))


@pytest.mark.parametrize(
    "cause",
    [
        "SIGKILL",
        "SIGTERM",
        "SIGINT",
        "SIGHUP",
        "disk",
        "refused",
        "finished",
        "interrupted",
        "diverged",
        "peer",
        "unknown",
    ],
)
def test_other_ends_never_count_and_do_not_break_a_row_before_its_step(cause):
    assert suspects(story(*[launch(30, (cause, 37))] * 9)) == {}
    assert 30 in suspects(story(DEATH, launch(30, (cause, 37)), DEATH, launch(30, (cause, 31)), DEATH))


def test_a_launch_without_a_stop_was_killed_and_says_nothing():
    assert suspects(story(*[launch(30)] * 9)) == {}
    assert 30 in suspects(story(DEATH, launch(30), DEATH, DEATH))


def test_a_start_that_got_past_the_step_breaks_the_row():
    for survived in (launch(30, ("SIGTERM", 38)), launch(30, saves=[40]), launch(30, ("unknown", 38))):
        assert suspects(story(DEATH, DEATH, survived, DEATH, DEATH)) == {}
    assert 30 in suspects(story(DEATH, DEATH, launch(30, saves=[36]), DEATH))


def test_a_death_at_another_step_begins_a_new_row():
    other = launch(30, ("exception", 35))
    assert suspects(story(DEATH, DEATH, other, DEATH, DEATH)) == {}
    assert "at step 35" in suspects(story(DEATH, other, other, other))[30]


def test_each_checkpoint_has_its_own_row():
    older = launch(20, ("exception", 37), digest="b")
    assert list(suspects(story(DEATH, older, DEATH, older, DEATH))) == [30]
    assert set(suspects(story(*[DEATH] * 3, *[older] * 3))) == {20, 30}


def test_a_checkpoint_that_took_the_place_of_a_suspect_one_is_not_suspect():
    rewritten = [{"event": "save", "step": 30, "digest": "new"}]
    assert suspects(story(*[DEATH] * 3, rewritten)) == {}
    assert 30 in suspects(story(*[DEATH] * 3, [{"event": "save", "step": 30, "digest": "a"}]))
    assert suspects(story(DEATH, DEATH, launch(30, ("exception", 37), digest="new"))) == {}


def test_rows_are_compared_with_what_is_on_the_disk_now():
    events = story(*[DEATH] * 3)
    assert 30 in suspects(events, {30: "a"}) and suspects(events, {30: "new"}) == suspects(events, {}) == {}


def test_deaths_before_something_was_mended_are_forgotten():
    assert suspects(story(*[DEATH] * 3, [{"event": "start", "fingerprint": "mended"}])) == {}
    assert 30 in suspects(story(*[DEATH] * 3, [{"event": "start", "fingerprint": "f"}]))


def test_the_first_stop_of_a_launch_that_knows_its_cause_is_its_cause():
    own, told = ("exception", 37), ("SIGTERM", 37)
    assert 30 in suspects(story(*[launch(30, own, told)] * 3))
    assert suspects(story(*[launch(30, told, own)] * 3)) == {}
    for echo in (("peer", 37), ("unknown", 37)):
        assert 30 in suspects(story(*[launch(30, echo, own)] * 3))


def test_a_death_before_a_checkpoint_was_resumed_or_at_an_unknown_step_belongs_to_none():
    fresh = [{"event": "start", "fingerprint": "f"}, {"event": "stop", "cause": "exception", "step": 0}]
    assert suspects(story(*[fresh] * 9)) == suspects(story(*[launch(30, ("exception", None))] * 9)) == {}
    assert suspects(story(DEATH, DEATH, fresh)) == {}, "the row of an earlier launch does not take it"


def test_the_checkpoint_gone_back_to_within_a_launch_takes_its_death():
    gone_back = [*launch(30)[:2], {"event": "resume", "step": 20, "digest": "b"}, *DEATH[2:]]
    assert list(suspects(story(*[gone_back] * 3))) == [20]


def test_a_death_without_words_is_told_by_its_cause():
    silent = launch(30)[:2] + [{"event": "stop", "cause": "fault", "step": 37}]
    assert "(fault)" in suspects(story(*[silent] * 3))[30]


def test_when_all_are_suspect_the_error_says_that_the_cause_is_elsewhere(tmp_path):
    text = all_suspect_text(tmp_path, {20: "died b", 30: "died a"})
    assert "holds 2 sound checkpoints and all are suspect (step 30: died a; step 20: died b)" in text
    assert (
        "the cause is then not in the checkpoints" in text and "resume_from_checkpoint=30" in text and "\n" not in text
    )
