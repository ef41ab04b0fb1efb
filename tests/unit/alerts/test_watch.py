"""The journal is read beside the training, and what does not arrive is tried again and then written down."""

import time
from datetime import datetime, timedelta

from tests.alert_server import SECRET, taking_alerts
from trainer.alerts import watch
from trainer.alerts.outbox import Message
from trainer.alerts.targets import DeliveryError, Webhook
from trainer.alerts.watch import Daily, Tail, Words, watching
from trainer.config.unattended import AlertsConfig
from trainer.journal import JOURNAL, Journal, read_events

WORDS = Words(lambda event: f"words of {event['event']}", lambda: "the day")


class Box:
    """A target that keeps what it gets, after some failures."""

    name = "box"

    def __init__(self, *failures):
        self.failures, self.got = list(failures), []

    def send(self, message: Message) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got.append(message)


def quickly(monkeypatch, waits=(0.01, 0.01)):
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "RETRY_SECONDS", waits)


def until(holds):
    ends = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_events_from_now_on_are_told_and_earlier_ones_are_not(tmp_path, monkeypatch):
    quickly(monkeypatch)
    journal, box = Journal(tmp_path), Box()
    journal.write("gave_up", words="before")
    with watching(tmp_path, AlertsConfig(every_minutes=0), [box], WORDS):
        journal.write("restart", attempt=1)
        until(lambda: box.got)
        journal.write("stop", cause="peer", step=3)
    assert [message.kind for message in box.got] == ["restart", "crash"]
    assert box.got[0].run == tmp_path.name and box.got[0].text.startswith("words of restart")


def test_only_chosen_events_are_told(tmp_path, monkeypatch):
    quickly(monkeypatch)
    box = Box()
    with watching(tmp_path, AlertsConfig(events="hang"), [box], WORDS):
        for event in ("restart", "hang", "gave_up"):
            Journal(tmp_path).write(event)
    assert [message.kind for message in box.got] == ["hang"]


def test_a_message_that_does_not_arrive_is_tried_again_and_then_written_down(tmp_path, monkeypatch):
    quickly(monkeypatch)
    passing, final = DeliveryError("it answered 500"), DeliveryError("it answered 404", is_final=True)
    patient, closed, broken = Box(passing, passing), Box(final), Box(KeyError("SECRET"))
    hopeless = Box(*[passing] * 50)
    for place, box in enumerate((patient, closed, broken, hopeless)):
        box.name = f"box {place}"
    with watching(tmp_path, AlertsConfig(), [patient, closed, broken, hopeless], WORDS):
        Journal(tmp_path).write("hang")
        until(lambda: len(read_events(tmp_path, "alert_failed")) == 3 and patient.got)
    failed = {event["target"]: (event["failure"], event["attempts"]) for event in read_events(tmp_path, "alert_failed")}
    assert failed == {"box 1": ("it answered 404", 1), "box 2": ("KeyError", 1), "box 3": ("it answered 500", 3)}


def test_the_end_of_a_launch_does_not_wait_for_ever(tmp_path, monkeypatch):
    quickly(monkeypatch, waits=(600.0, 600.0))
    monkeypatch.setattr(watch, "ATTEMPTS_AT_THE_END", 1)
    failing, slow = Box(*[DeliveryError("it answered 500")] * 9), Box()
    slow.name, slow.send = "slow", lambda message: time.sleep(3.0)
    began = time.monotonic()
    with watching(tmp_path, AlertsConfig(), [failing, slow], WORDS, end_seconds=0.5):
        Journal(tmp_path).write("stop", cause="finished")
    assert time.monotonic() - began < 2.5
    assert {event["target"] for event in read_events(tmp_path, "alert_failed")} == {"box", "slow"}


def test_through_a_server_that_fails_at_first(tmp_path, monkeypatch):
    quickly(monkeypatch)
    with taking_alerts() as server:
        server.answers = [500, 429]
        with watching(tmp_path, AlertsConfig(), [Webhook(server.url)], WORDS):
            Journal(tmp_path).write("gave_up")
            until(lambda: server.received)
    assert server.num_requests == 3 and not read_events(tmp_path, "alert_failed")
    assert SECRET not in (tmp_path / JOURNAL).read_text()


def test_a_line_is_read_when_it_is_whole_and_once(tmp_path):
    path = tmp_path / JOURNAL
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"event": "a"}\n{"event": "b"')
    assert [event["event"] for event in tail.read()] == ["a"]
    with open(path, "ab") as file:
        file.write(b'}\nno json\n{"event": "c"}\n')
    assert [event["event"] for event in tail.read()] == ["b", "c"]
    path.write_bytes(b'{"event": "d"}\n')  # another file in its place
    assert tail.read() == [] and tail.read() == []


def test_the_line_of_the_day_comes_at_its_hour_once_a_day_and_again_when_the_clock_has_jumped_forward():
    start = datetime(2026, 3, 1, 7, 59)
    daily = Daily(8, start)
    due = [hours for hours in range(60) if daily.is_due(start + timedelta(hours=hours))]
    assert due == [1, 25, 49]
    assert not daily.is_due(start + timedelta(hours=30))  # the clock was set back
    assert not Daily(8, datetime(2026, 3, 1, 8, 0)).is_due(datetime(2026, 3, 2, 7, 59))


def test_the_line_of_the_day_is_sent(tmp_path, monkeypatch):
    quickly(monkeypatch)
    monkeypatch.setattr(
        Daily, "is_due", lambda self, now: not vars(self).setdefault("told", False) and not vars(self).update(told=True)
    )
    box = Box()
    with watching(tmp_path, AlertsConfig(), [box], WORDS):
        until(lambda: box.got)
    assert [(message.kind, message.text) for message in box.got] == [("daily", "the day")]
