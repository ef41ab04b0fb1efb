import pytest

from trainer import text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1k"),
        (1.24e8, "124M"),
        (3.2e9, "3.2B"),
        (-4.5e12, "-4.5T"),
        (0.5, "0.5"),
    ],
)
def test_a_count_has_three_digits(number, words):
    assert text.count(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1_487_000_000, "1.49 GB"),
        (2.5e12, "2.5 TB"),
        (4.9e15, "4.9 PB"),
    ],
)
def test_a_size_has_a_decimal_unit(number, words):
    assert text.size(number) == words


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [(1, "process", "1 process"), (2, "process", "2 processes"), (0, "step", "0 steps"), (1200, "step", "1,200 steps")],
)
def test_a_number_and_its_noun_agree(number, noun, words):
    assert text.numbered(number, noun) == words


@pytest.mark.parametrize("almost", [999_700, 999_999, 999_600_000])
def test_a_number_just_below_a_unit_has_no_exponent(almost):
    assert "e+" not in text.count(almost)
    assert "e+" not in text.size(almost)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.0123, "0.0123s"),
        (9.99, "9.99s"),
        (9.999, "10s"),
        (59.4, "59s"),
        (60, "1m 0s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (93784, "1d 2h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, words):
    assert text.duration(seconds) == words


def test_a_mistyped_word_is_answered_with_the_nearest_or_with_all():
    assert text.nearest("optimzer", ["optimizer", "model"]) == "optimizer"
    assert text.nearest("xyz", ["optimizer", "model"]) is None
    assert text.did_you_mean("modle", ["optimizer", "model"]) == "did you mean 'model'?"
    assert text.did_you_mean("xyz", ["b", "a"]) == "known are: a, b"


def test_a_table_sets_numbers_to_the_right_and_words_to_the_left():
    rows = [("name", "loss"), ("a", "10.5"), ("long name", "9.5"), ("b", "-")]
    assert text.table(rows) == "  name       loss\n  a          10.5\n  long name   9.5\n  b             -"


def test_a_table_of_a_heading_only_is_that_heading():
    assert text.table([("a", "b")], indent="") == "a  b"


def test_what_a_model_writes_cannot_move_the_cursor_or_colour_the_terminal():
    assert text.printable("a\x1b[2Jb\tc\nd\x07\x9b\u202ee\u00e9") == "a\ufffd[2Jb\tc\nd\ufffd\ufffd\ufffde\u00e9"
    assert text.shortened("a\x1b[2J\n b\r") == '"a\ufffd[2J b"'
