"""Rows of the hub that are kept; the hub itself is played."""

from itertools import islice

import pytest

from tests.messages import logged, refuses
from trainer.data import sources
from trainer.data.cached_rows import FOLDER, cached_rows
from trainer.errors import DataError

SOURCE = "hf:who/set:part@test"
ROWS = [(f"{SOURCE}, row {number}", {"text": f"line {number}", "label": number}) for number in range(1, 6)]


@pytest.fixture
def hub(project, monkeypatch):
    """Counts what is fetched; with `up` False there is no network."""

    class Hub:
        fetched, up = [], True

    def rows(source):
        if not Hub.up:
            raise DataError("no network")
        for row in ROWS:
            Hub.fetched.append(row)
            yield row

    monkeypatch.setattr(sources, "rows", rows)
    return Hub


def take(number):
    return list(islice(cached_rows(SOURCE), number))


def test_rows_that_were_fetched_once_need_no_network(hub, project):
    assert take(3) == ROWS[:3]
    hub.up = False
    assert take(3) == ROWS[:3]
    assert take(2) == ROWS[:2]
    assert [path.name for path in (project / FOLDER).iterdir()] == ["who--set--part@test.jsonl"]
    with refuses(DataError, "no network"):
        take(4)
    assert take(3) == ROWS[:3], "what is kept stays"


def test_more_rows_are_fetched_behind_those_that_are_kept(hub):
    assert take(2) == ROWS[:2]
    assert take(4) == ROWS[:4]
    hub.up = False
    assert take(4) == ROWS[:4]


def test_a_set_that_was_read_to_its_end_has_an_end(hub):
    assert take(None) == ROWS
    hub.up = False
    assert take(None) == ROWS == take(99)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\n", b'["where"'])
def test_a_damaged_file_is_fetched_anew(hub, project, content):
    take(None)
    (path,) = (project / FOLDER).iterdir()
    path.write_bytes(content)
    assert take(None) == ROWS == take(None)
    assert len(hub.fetched) == 2 * len(ROWS)


def test_rows_that_cannot_be_kept_are_told_and_used(hub, project, caplog):
    (project / ".data").touch()
    assert take(2) == ROWS[:2]
    logged(caplog, project / ".data")


def test_a_file_is_read_as_it_is(project):
    (project / "mine.jsonl").write_text('{"text": "a"}\n')
    assert list(cached_rows(str(project / "mine.jsonl"))) == [(f"{project / 'mine.jsonl'}, line 1", {"text": "a"})]
    assert not (project / ".data").exists()
