"""Text as it comes is, put together, the text that all bytes give at once, up to a stop text; many rows come one after the other."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.generation.stream import InOrder, TextStream

texts = st.text("ab\u00e9\U0001f600\n", max_size=12)
pieces = st.lists(texts.map(str.encode) | st.binary(max_size=3), max_size=8)


def streamed(parts, stops=()):
    stream = TextStream(stops)
    return [stream.feed(part) for part in parts] + [stream.end()], stream.is_stopped


@given(pieces)
def test_the_pieces_are_the_text_of_all_bytes(parts):
    assert "".join(streamed(parts)[0]) == b"".join(parts).decode("utf-8", errors="replace")


@given(pieces, st.lists(texts.filter(bool), min_size=1, max_size=3))
def test_a_text_ends_before_the_first_stop_that_is_whole(parts, stops):
    said, is_stopped = streamed(parts, stops)
    whole = b"".join(parts).decode("utf-8", errors="replace")
    assert is_stopped == any(stop in whole for stop in stops)
    if is_stopped:
        # Of two stops that overlap the one that is whole first counts: what came after it was never written.
        assert whole.startswith("".join(said))
        assert any(whole[len("".join(said)) :].startswith(stop) for stop in stops)
    else:
        assert "".join(said) == whole


def test_a_character_comes_once_it_is_whole():
    assert streamed([b"a\xf0", b"\x9f\x98", b"\x80b", b"\xf0"])[0] == ["a", "", "\U0001f600b", "", "\ufffd"]


def test_what_may_begin_a_stop_is_held_back_until_it_is_known_not_to():
    assert streamed([b"To be", b"\n", b"or", b"\n", b"\n", b"not"], ["\n\n"]) == (
        ["To be", "", "\nor", "", "", "", ""],
        True,
    )
    assert streamed([b"ab", b"abc"], ["abd"]) == (["", "ab" + "abc", ""], False)
    assert streamed([b"abcd"], ["cd", "b"]) == (["a", ""], True)
    assert streamed([b"ab"], ["abc"]) == (["", "ab"], False)


def shown(events):
    said = []
    order = InOrder(lambda row, text: said.append((row, text)), lambda row: said.append((row, "end")))
    for row, text in events:
        order.end(row) if text is None else order.write(row, text)
    return said


def test_the_first_row_is_shown_as_it_comes_and_the_others_when_it_is_their_turn():
    events = [(0, "a"), (1, "x"), (2, "1"), (0, "b"), (1, "y"), (0, None), (1, "z"), (2, None), (1, None)]
    assert shown(events) == [(0, "a"), (0, "b"), (0, "end"), (1, "xy"), (1, "z"), (1, "end"), (2, "1"), (2, "end")]


@given(st.permutations([(row, text) for row in range(3) for text in ("a", "", "b", "c")]))
def test_every_row_is_whole_and_in_its_place_whatever_the_order(events):
    left = dict.fromkeys(range(3), 4)
    told = []
    for row, text in events:
        told.append((row, text))
        left[row] -= 1
        if not left[row]:
            told.append((row, None))
    said = shown(told)
    assert [row for row, _ in said] == sorted(row for row, _ in said)
    for row in range(3):
        own = [text for other, text in said if other == row]
        assert own[-1] == "end"
        assert "".join(own[:-1]) == "".join(text for other, text in events if other == row)
