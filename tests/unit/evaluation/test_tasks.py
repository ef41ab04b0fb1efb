"""A name becomes a task, or an error that says which names there are."""

import json
from pathlib import Path

import pytest

from tests.messages import refuses
from trainer.data.sources import rows
from trainer.errors import ConfigError, DataError
from trainer.evaluation.tasks import PUBLIC, open_tasks

CHOICE = {"query": "The sky is", "choices": ["blue", "a cow", "up"], "gold": 0}
WORD = {"context": "The sky is", "continuation": "blue"}


def write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def opened(folder, *wanted, limit=None, read=rows, **settings):
    return open_tasks(wanted, limit, folder, rows=read, **settings)


def test_a_file_is_a_task_by_its_name_and_a_relative_path_is_meant_from_the_folder(tmp_path):
    write(tmp_path / "sets" / "sky.jsonl", CHOICE, CHOICE)
    (task,) = opened(tmp_path, "sets/sky.jsonl")
    assert (task.name, len(task.items), task.chance) == ("sky", 2, pytest.approx(1 / 3))
    assert task.items[1].where == f"{tmp_path / 'sets' / 'sky.jsonl'}, line 2"
    assert opened(tmp_path, str(tmp_path / "sets" / "sky.jsonl"))[0].items == task.items


def test_a_last_word_has_no_chance(tmp_path):
    write(tmp_path / "words.jsonl", WORD)
    assert opened(tmp_path, "words.jsonl")[0].chance is None


def test_chance_is_the_mean_over_items_of_different_numbers_of_choices(tmp_path):
    write(tmp_path / "sky.jsonl", CHOICE, {**CHOICE, "choices": ["blue", "up"]})
    assert opened(tmp_path, "sky.jsonl")[0].chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_the_limit_takes_the_first_items_and_no_line_behind_them_is_read(tmp_path):
    write(tmp_path / "sky.jsonl", CHOICE, CHOICE, "broken")
    assert len(opened(tmp_path, "sky.jsonl", limit=2)[0].items) == 2
    assert len(opened(tmp_path, "shakespeare_lines", limit=7)[0].items) == 7


def test_a_public_set_is_the_rows_of_its_source(tmp_path):
    asked = []

    def fetched(source):
        asked.append(source)
        return iter([(f"{source}, row 1", {"goal": "Dry a cat", "sol1": "Wait.", "sol2": "Wring it.", "label": 0})])

    (task,) = opened(tmp_path, "piqa", read=fetched)
    assert (task.name, len(task.items), asked) == ("piqa", 1, ["hf:baber/piqa@validation"])


def test_a_check_that_fetches_nothing_leaves_the_public_sets_out_and_still_reads_the_files(tmp_path):
    write(tmp_path / "sky.jsonl", CHOICE)
    assert [task.name for task in opened(tmp_path, *PUBLIC, "sky.jsonl", fetch=False)] == ["sky"]


def test_a_name_said_twice_is_one_task(tmp_path):
    assert len(opened(tmp_path, "shakespeare_lines", "shakespeare_lines", limit=1)) == 1


def test_two_files_of_one_name_are_refused(tmp_path):
    write(tmp_path / "a" / "sky.jsonl", CHOICE)
    write(tmp_path / "b" / "sky.jsonl", CHOICE)
    with refuses(ConfigError, "b/sky.jsonl", "sky"):
        opened(tmp_path, "a/sky.jsonl", "b/sky.jsonl")


def test_an_unknown_name_is_told_with_the_nearest(tmp_path):
    with refuses(ConfigError, "'shakespear_lines'", "'shakespeare_lines'"):
        opened(tmp_path, "shakespear_lines")
    with refuses(ConfigError, "~nosuch/mine.jsonl'"):
        opened(tmp_path, "~nosuch/mine.jsonl")


def test_a_folder_is_called_one(tmp_path):
    with refuses(ConfigError, "'.'", "folder"):
        opened(tmp_path, ".")


def test_an_empty_file_is_refused(tmp_path):
    write(tmp_path / "sky.jsonl", "")
    with refuses(DataError, "sky.jsonl", "JSON object"):
        opened(tmp_path, "sky.jsonl")


def test_two_forms_in_one_file_are_refused(tmp_path):
    write(tmp_path / "sky.jsonl", CHOICE, WORD)
    with refuses(DataError, "line 2", "last word", "line 1", "multiple choice"):
        opened(tmp_path, "sky.jsonl")


@pytest.mark.parametrize(("content", "words"), [("{", ["line 2", "JSON object"]), ('{"query": 1}', ["line 2", "item"])])
def test_a_broken_line_is_refused_with_its_number(tmp_path, content, words):
    write(tmp_path / "sky.jsonl", CHOICE, content)
    with refuses(DataError, "sky.jsonl", *words):
        opened(tmp_path, "sky.jsonl")
