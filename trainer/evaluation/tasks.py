"""What a name in `evaluation.tasks` stands for: the built-in task, a file of items, or a public set of the hub."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.contracts import Rows
from trainer.data.assets import embedded_documents
from trainer.data.cached_rows import cached_rows
from trainer.errors import ConfigError, DataError
from trainer.evaluation.items import Item, item
from trainer.evaluation.next_lines import NAME, next_line_items
from trainer.text import did_you_mean

PUBLIC = {
    "hellaswag": "hf:Rowan/hellaswag@validation",
    "piqa": "hf:baber/piqa@validation",
    "arc_easy": "hf:allenai/ai2_arc:ARC-Easy@test",
    "arc_challenge": "hf:allenai/ai2_arc:ARC-Challenge@test",
    "copa": "hf:aps/super_glue:copa@validation",
    "winogrande": "hf:allenai/winogrande:winogrande_xl@validation",
    "lambada": "hf:EleutherAI/lambada_openai:default@test",
}
"""Public sets by name, and where they are fetched from: the data set and split that lm-evaluation-harness takes."""


@dataclass(frozen=True)
class Task:
    """Questions of one form."""

    name: str
    items: tuple[Item, ...]

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing; None for a last word, which is not chosen among a few."""
        if self.items[0].is_last_word:
            return None
        return sum(1 / len(item.pairs) for item in self.items) / len(self.items)


def open_tasks(
    wanted: Sequence[str], limit: int | None, folder: Path, *, rows: Rows = cached_rows, fetch: bool = True
) -> list[Task]:
    """The tasks of these names, each with its first `limit` items (None: all).

    folder  what relative paths are meant from
    rows    reads a file or a set of the hub
    fetch   False leaves the public sets out, after their names were checked
    raises  ConfigError for an unknown name and for two tasks of one name, DataError for an item that is not right
    """
    tasks: dict[str, Task] = {}
    wanted = list(dict.fromkeys(wanted))  # a name given twice counts once
    for name in wanted:
        if name in PUBLIC and not fetch:
            continue
        task = _open(name, limit, folder, rows)
        if task.name in tasks:
            raise ConfigError(
                f"evaluation task {name!r}: another one is called {task.name} too; give the file another name"
            )
        tasks[task.name] = task
    return list(tasks.values())


def _open(name: str, limit: int | None, folder: Path, rows: Rows) -> Task:
    if name == NAME:
        return Task(NAME, next_line_items(embedded_documents("shakespeare", "validation"))[:limit])
    if name in PUBLIC:
        return _task(name, islice(rows(PUBLIC[name]), limit), PUBLIC[name])
    path = folder / os.path.expanduser(name)
    if path.is_dir():
        raise ConfigError(f"evaluation task {name!r} is a folder; a task is one file of items: name the files in it")
    if not path.is_file():
        raise ConfigError(
            f"evaluation task {name!r} is neither a file ({path} is not there) nor a task by name; {did_you_mean(name, [NAME, *PUBLIC])}"
        )
    return _task(path.name.partition(".")[0] or path.name, islice(rows(str(path)), limit), str(path))


def _task(name: str, rows: Iterator[tuple[str, Any]], source: str) -> Task:
    items = tuple(item(where, row) for where, row in rows)
    if not items:
        raise DataError(f"{source} holds no item; a task has at least one: one JSON object per line")
    for one in items:
        if one.form != items[0].form:
            raise DataError(
                f"{one.where} is of the form {one.form}, and {items[0].where} of the form {items[0].form}; a task has one form: part the file"
            )
    return Task(name, items)
