"""Prompts come from words, files and standard input, in this order; a file that is none is told."""

import contextlib
import io
import os

import pytest

from tests.messages import refuses
from trainer.errors import ConfigError
from trainer.generation.prompts import gather_prompts, is_piped, read_prompts


@pytest.fixture
def file(tmp_path):
    def write(text, name="prompts.txt"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


@contextlib.contextmanager
def piped(data: bytes):
    """Standard input at the other end of a pipe."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with open(reading, encoding="ascii") as stream:
        yield stream


def test_a_text_file_has_a_prompt_a_line(file):
    assert read_prompts(file("To be\n\n or not \n")) == ["To be", " or not "]


def test_a_jsonl_file_has_an_object_a_line_and_a_prompt_may_have_lines(file):
    lines = '{"prompt": "To be\\nor"}\n\n{"prompt": "caf\u00e9 \u2028", "id": 2}\n'
    assert read_prompts(file(lines, "prompts.jsonl")) == ["To be\nor", "caf\u00e9 \u2028"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("prompts.txt", "\n \n", ["prompts"]),
        ("prompts.jsonl", "", ["prompts"]),
        ("prompts.txt", b"\xff\xfe", ["prompts.txt", "UTF-8"]),
        ("prompts.jsonl", '{"prompt": "a"}\nTo be\n', ["line 2", "JSON", "prompt"]),
        ("prompts.jsonl", '{"text": "a"}\n', ["line 1", "prompt"]),
        ("prompts.jsonl", '{"prompt": 1}\n', ["line 1", "prompt"]),
        ("prompts.jsonl", '["a"]\n', ["line 1", "prompt"]),
        ("prompts.jsonl", b"\xff\n", ["line 1", "JSON"]),
    ],
)
def test_a_file_that_has_no_prompts_is_told(file, name, text, words):
    with refuses(ConfigError, name, *words):
        read_prompts(file(text, name))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with refuses(ConfigError, tmp_path / "none.txt"):
        read_prompts(tmp_path / "none.txt")


def test_what_is_piped_in_is_the_prompt_without_the_newline_of_echo():
    with piped("caf\u00e9\n\n".encode() + b"\xff\n") as stream:
        assert is_piped(stream)
        assert gather_prompts([], None, stream) == ["caf\u00e9\n\n\ufffd"]


def test_a_dash_stands_for_standard_input_among_others(file):
    with piped(b"to be\n") as stream:
        assert gather_prompts(["a", "-"], file("b\nc\n"), stream) == ["a", "to be", "b", "c"]


def test_standard_input_is_left_alone_where_there_are_prompts(file):
    with piped(b"to be\n") as stream:
        assert gather_prompts(["a"], None, stream) == ["a"]
        assert gather_prompts([], file("b\n"), stream) == ["b"]
        assert stream.read() == "to be\n"


def test_without_any_the_prompt_is_empty_also_under_a_scheduler(file):
    with open(os.devnull) as nothing, open(file("from a file")) as something:
        assert not is_piped(nothing)
        assert gather_prompts([], None, nothing) == [""]
        assert gather_prompts([], None, something) == ["from a file"]
    assert gather_prompts([], None, io.StringIO("no file at all")) == [""]
    assert gather_prompts([], None, something) == [""], "it is closed"
