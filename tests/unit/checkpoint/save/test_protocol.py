import socket
import threading

import pytest

from trainer.checkpoint.save.protocol import Channel, to_bytes, to_text


@pytest.fixture
def ends():
    first, second = socket.socketpair()
    return Channel(first), Channel(second)


def test_messages_arrive_whole_and_in_order(ends):
    first, second = ends
    sent = [{"do": "whole", "n": number, "text": "x" * (number * 300_000)} for number in range(5)]
    thread = threading.Thread(target=lambda: [first.send(message) for message in sent])
    thread.start()
    assert [second.receive() for _ in sent] == sent
    thread.join()


def test_what_has_arrived_is_taken_without_waiting(ends):
    first, second = ends
    assert second.arrived() == []
    first.send({"a": 1})
    first.send({"b": 2})
    assert second.arrived(1.0) + second.arrived(1.0) == [{"a": 1}, {"b": 2}] and second.arrived() == []


def test_an_end_that_left_is_none_and_half_a_message_is_no_message(ends):
    first, second = ends
    first.send({"a": 1})
    first._unsent.put(b"\x40\0\0\0\0\0\0\0{half")
    first.close()
    assert second.arrived(1.0) == [{"a": 1}]
    assert second.arrived() is None and second.receive() is None


def test_an_end_that_takes_nothing_holds_nobody_up(ends):
    first, second = ends
    for _ in range(40):
        first.send({"text": "x" * 100_000})
    assert sum(1 for _ in range(40) if second.receive()) == 40


def test_bytes_travel_as_text():
    content = bytes(range(256))
    assert to_bytes(to_text(content)) == content
