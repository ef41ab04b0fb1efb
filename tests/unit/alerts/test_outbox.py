"""How often a person is told."""

from trainer.alerts.outbox import Outbox


def test_the_first_of_a_kind_goes_at_once_and_further_ones_go_together_later():
    outbox = Outbox("mine", 600.0)
    outbox.put("crash", "first")
    assert [(message.run, message.kind, message.text) for message in outbox.take(0.0)] == [("mine", "crash", "first")]
    for number in range(3):
        outbox.put("crash", f"crash {number}")
    outbox.put("slow", "slow")
    assert [message.kind for message in outbox.take(10.0)] == ["slow"]
    assert outbox.take(599.0) == []
    (together,) = outbox.take(600.0)
    assert together.text.startswith("crash 2") and "3" in together.text
    assert outbox.take(601.0) == []


def test_an_end_is_told_at_once_and_at_the_end_all_that_was_held_back_is():
    outbox = Outbox("mine", 600.0)
    for kind in ("gave_up", "crash"):
        outbox.put(kind, "once")
    assert [message.kind for message in outbox.take(0.0)] == ["gave_up", "crash"]
    for kind in ("gave_up", "crash"):
        outbox.put(kind, "again")
    assert [message.kind for message in outbox.take(1.0)] == ["gave_up"]
    assert [message.kind for message in outbox.take(2.0, all_of_it=True)] == ["crash"]


def test_nothing_is_held_back_where_no_minutes_are_asked_for():
    outbox = Outbox("mine", 0.0)
    for _ in range(3):
        outbox.put("crash", "now")
        assert len(outbox.take(5.0)) == 1
