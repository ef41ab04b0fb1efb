"""Rows of the hub, kept on the disk: a run that starts again at night asks the same questions, whatever became of the network."""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from trainer import files
from trainer.data import sources

log = logging.getLogger(__name__)

FOLDER = ".data/rows"
"""In the project's folder."""

_END = "end"
"""The last line of a source that was read to its end."""


def cached_rows(source: str) -> Iterator[tuple[str, Any]]:
    """The rows of `sources.rows`; of `hf:...` those that were fetched before come from the disk, and only what is beyond them from the hub.

    raises  DataError as `sources.rows`
    """
    if not source.startswith("hf:"):
        yield from sources.rows(source)
        return
    path = files.project_folder() / FOLDER / f"{source.removeprefix('hf:').replace('/', '--').replace(':', '--')}.jsonl"
    kept, is_whole = _read(path)
    yield from kept
    if is_whole:
        return
    fetched: list[tuple[str, Any]] = []
    try:
        for row in islice(sources.rows(source), len(kept), None):
            fetched.append(row)
            yield row
        is_whole = True
    finally:  # also where the reader has enough, or the network ends
        if fetched or is_whole:
            _write(path, kept + fetched, is_whole)


def _read(path: Path) -> tuple[list[tuple[str, Any]], bool]:
    """The kept rows, and whether they are all; none where there is no such file, or a damaged one."""
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError):
        return [], False
    is_whole = lines[-1:] == [_END]
    return [(where, row) for where, row in (lines[:-1] if is_whole else lines)], is_whole


def _write(path: Path, rows: list[tuple[str, Any]], is_whole: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, "".join(json.dumps(line) + "\n" for line in [*rows, *([_END] if is_whole else [])]))
    except (OSError, TypeError) as error:
        log.warning("%s cannot be written (%s): the next start fetches these rows again", path, error)
