"""Documents come out of every kind of source, and what is wrong with one is said with its place."""

import errno
import gzip
import json
import logging
import os
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.messages import logged, names, refuses, says
from trainer.data import sources
from trainer.data.sources import open_source, rows, suffixes
from trainer.errors import DataError

TEXTS = ["To be, or not to be", "naive caf\u00e9 \U0001f600\nsecond line", "x" * 5000, "<|endoftext|>"]


def documents(source, text_key=None, split="train", **found):
    return sources.documents(open_source(source, **found), text_key, split)


def source_files(source, **found):
    return list(open_source(source, **found).files)


def source_identity(source):
    return sources.source_identity(open_source(source))


def estimated_text_bytes(source):
    return sources.estimated_text_bytes(open_source(source))


def json_lines(texts, key="text") -> bytes:
    return "".join(json.dumps({key: text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


def write_zst(path, content: bytes) -> None:
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(content)


def write_parquet(path, texts, key="text") -> None:
    table = pyarrow.table({"id": range(len(texts)), key: texts})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


def flipped(content: bytes) -> bytes:
    """The same bytes with the first of the packed stream changed."""
    return content[:10] + bytes([content[10] ^ 0xFF]) + content[11:]


KINDS = ["jsonl", "ndjson", "json lines", "json array", "jsonl.gz", "jsonl.zst", "parquet", "folder", "saved"]


@pytest.fixture(params=KINDS)
def source(request, tmp_path) -> str:
    match request.param:
        case "jsonl" | "ndjson":
            path = tmp_path / f"a.{request.param}"
            path.write_bytes(json_lines(TEXTS).replace(b"\n", b"\n\n"))
        case "json lines":
            path = tmp_path / "a.json"
            path.write_bytes(json_lines(TEXTS))
        case "json array":
            path = tmp_path / "a.json"
            path.write_text(" \n" + json.dumps([{"text": text} for text in TEXTS], indent=1))
        case "jsonl.gz":
            path = tmp_path / "a.jsonl.gz"
            path.write_bytes(gzip.compress(json_lines(TEXTS[:2])) + gzip.compress(json_lines(TEXTS[2:])))
        case "jsonl.zst":
            path = tmp_path / "a.jsonl.zst"
            write_zst(path, json_lines(TEXTS))
        case "parquet":
            path = tmp_path / "a.parquet"
            write_parquet(path, TEXTS)
        case "folder":
            path = tmp_path / "folder"
            (path / "inner").mkdir(parents=True)
            (path / "1.txt").write_text(TEXTS[0])
            (path / "2.jsonl").write_bytes(json_lines(TEXTS[1:2]))
            write_parquet(path / "10.parquet", TEXTS[2:3])
            (path / "inner" / "a.txt").write_text(TEXTS[3])
            (path / "inner" / "b.txt").symlink_to(path / "inner" / "a.txt")
            (path / "readme.html").write_text("not read")
        case "saved":
            path = tmp_path / "saved"
            datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(path)
    return str(path)


def test_every_kind_of_source_gives_the_same_documents(source):
    assert list(documents(source)) == TEXTS
    assert list(documents(source, "text")) == TEXTS


def test_globs_are_read_in_natural_order_and_each_file_once(tmp_path):
    for i in (10, 9, 1):
        (tmp_path / f"{i}.txt").write_text(f"number {i}")
    assert list(documents(f"{tmp_path}/*.txt")) == ["number 1", "number 9", "number 10"]
    (tmp_path / "2.txt").symlink_to(tmp_path / "1.txt")
    assert [path.name for path in source_files(str(tmp_path))] == ["1.txt", "9.txt", "10.txt"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx\r\ny")
    assert list(documents(str(tmp_path / "a.txt"))) == ["x\r\ny"]


def test_the_content_key_is_second_and_another_must_be_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS, "content"))
    (tmp_path / "b.jsonl").write_bytes(json_lines(TEXTS, "body"))
    write_parquet(tmp_path / "b.parquet", TEXTS, "body")
    assert list(documents(str(tmp_path / "a.jsonl"))) == TEXTS
    for name in ("b.jsonl", "b.parquet"):
        assert list(documents(str(tmp_path / name), "body")) == TEXTS
        with refuses(DataError, "'text or content'", "body", "--text-key"):
            list(documents(str(tmp_path / name)))
        with refuses(DataError, "'txt'"):
            list(documents(str(tmp_path / name), "txt"))


def test_documents_without_text_are_left_out_and_counted(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "x"}\n{"text": null}\n')
    with caplog.at_level(logging.WARNING):
        assert list(documents(str(tmp_path / "a.jsonl"))) == ["x"]
    logged(caplog, 2, "without text")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["line 2", "column"]),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', ["line 2", "'text'", "body"]),
        ("a.jsonl", b'["x"]\n', ["line 1", "list", "JSON object"]),
        ("a.jsonl", b'{"text": 3}\n', ["line 1", "'text'", "int"]),
        ("a.jsonl", b'{"text": "\xff"}\n', ["line 1", "UTF-8", "0xff at 10"]),
        ("a.json", b'[{"text": "x"},\n', ["line 2", "array"]),
        ("a.txt", b"caf\xe9", ["UTF-8", "0xe9 at 3"]),
        ("a.parquet", b"PAR1 no more", ["parquet"]),
        ("a.jsonl.gz", gzip.compress(json_lines(TEXTS))[:-20], ["end"]),
        (
            "a.jsonl.gz",
            flipped(gzip.compress(json_lines(TEXTS * 9), mtime=0)),
            ["line 1", "end", "Error -3"],
        ),
        ("a.txt.gz", flipped(gzip.compress(b"x" * 5000, mtime=0)), ["end", "Error -3"]),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 200_000, ["line 2", "JSON", "recursion"]),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", ["line 1", "JSON", "5000 digits"]),
        ("a.json", b"[" * 200_000, ["JSON", "recursion"]),
        ("a.json", b"[" + b"9" * 5000 + b"]", ["JSON", "5000 digits"]),
        ("a.jsonl.zst", b"no zstd at all", ["end"]),
        ("a.csv", b"a,b", [".csv", ".jsonl"]),
    ],
)
def test_a_damaged_file_is_told_with_its_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with refuses(DataError, name, *words):
        list(documents(str(tmp_path / name)))


def test_a_truncated_zst_file_is_not_taken_for_a_short_one(tmp_path):
    write_zst(tmp_path / "whole.zst", json_lines([str(i) * 50 for i in range(5000)]))
    content = (tmp_path / "whole.zst").read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        list(documents(str(tmp_path / "a.jsonl.zst")))


def test_a_column_that_is_not_text_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1, 2])
    with refuses(DataError, "a.parquet", "'text'", "int64"):
        list(documents(str(tmp_path / "a.parquet")))


def test_a_source_that_is_nothing_is_told_what_there_is(tmp_path):
    with refuses(DataError, "'roneneldan/TinyStories'", "embedded:shakespeare", "hf:roneneldan/TinyStories"):
        documents("roneneldan/TinyStories")
    (tmp_path / "readme.html").touch()
    with refuses(DataError, tmp_path, "1 .html", "--suffix"):
        documents(str(tmp_path))
    with refuses(DataError, "none[1]", "[[]"):
        documents(f"{tmp_path}/none[1]/*.txt")


def test_the_embedded_corpus_has_two_splits():
    assert len(list(documents("embedded:shakespeare"))) == 163
    held_out = list(documents("embedded:shakespeare@validation"))
    assert held_out == list(documents("embedded:shakespeare", split="validation"))
    assert len(held_out) == 19
    with refuses(DataError, "milton", "shakespeare"):
        documents("embedded:milton")


def test_a_saved_dataset_with_splits_is_read_by_split(tmp_path):
    saved = {split: datasets.Dataset.from_dict({"text": [split]}) for split in ("train", "validation")}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    assert list(documents(str(tmp_path / "saved"))) == ["train"]
    assert list(documents(str(tmp_path / "saved"), split="validation")) == ["validation"]
    with refuses(DataError, "'test'", "train", "validation"):
        list(documents(str(tmp_path / "saved"), split="test"))


def test_a_hub_dataset_is_streamed_by_name_config_and_split(monkeypatch):
    asked = []

    def load(path, config, *, split, revision, streaming):
        asked.append((path, config, split, revision, streaming))
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(documents("hf:owner/name:config@test")) == ["a", "b"]
    assert list(documents("hf:owner/name")) == ["a", "b"]
    assert list(documents("hf:owner/name#v1", split="validation")) == ["a", "b"]
    assert asked == [
        ("owner/name", "config", "test", None, True),
        ("owner/name", None, "train", None, True),
        ("owner/name", None, "validation", "v1", True),
    ]


def test_a_hub_that_cannot_be_reached_is_one_paragraph(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with refuses(DataError, "hf:owner/name", "'train'", "no network"):
        list(documents("hf:owner/name"))


def test_a_machine_without_datasets_is_told_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refuses(DataError, "pip install datasets"):
        list(documents("hf:owner/name"))


def test_identities_change_with_the_files(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = source_identity(str(tmp_path))
    (tmp_path / "a.txt").write_text("xy")
    assert source_identity(str(tmp_path)) != before == [str(tmp_path), ["a.txt", 1]]
    assert source_identity("hf:owner/name") == ["hf:owner/name"]
    assert len(source_identity("embedded:shakespeare@validation")[1]) == 64


def test_text_bytes_are_estimated_with_compression_undone(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(10))
    (tmp_path / "a.jsonl.gz").write_bytes(bytes(10))
    assert estimated_text_bytes(str(tmp_path)) == 40
    assert estimated_text_bytes("hf:owner/name") == 0


# Rows as they are


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_rows_of_a_file_come_with_their_lines(name, tmp_path):
    path, content = tmp_path / name, b'{"a": 1}\n\n[2]\n'
    if name.endswith(".zst"):
        write_zst(path, content)
    else:
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(rows(str(path))) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 3", [2])]


def test_rows_of_another_kind_of_file_or_of_a_damaged_one_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with refuses(DataError, "a.txt", ".jsonl", ".ndjson", ".json"):
        list(rows(str(tmp_path / "a.txt")))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-10])
    with refuses(DataError, tmp_path / "a.jsonl.gz"):
        list(rows(str(tmp_path / "a.jsonl.gz")))
    with refuses(DataError, tmp_path / "b.jsonl", "No such file"):
        list(rows(str(tmp_path / "b.jsonl")))


def test_rows_of_the_hub_are_those_of_the_named_split(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split, revision, streaming):
        asked.append((path, config, split, streaming))
        return [{"a": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(rows("hf:allenai/ai2_arc:ARC-Easy@test")) == [("hf:allenai/ai2_arc:ARC-Easy@test, row 1", {"a": 1})]
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test", True)]


# What is there and cannot be read


def broken_folder(tmp_path):
    """Good texts among dangling links, one of them in a folder below."""
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "1.txt").write_text("one")
    (folder / "inner" / "2.txt").write_text("two")
    (folder / "3.txt").symlink_to(tmp_path / "gone.txt")
    (folder / "inner" / "more").symlink_to(tmp_path / "gone")
    return folder


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*"])
def test_a_dangling_link_is_named_and_left_out_only_when_told_to(tmp_path, caplog, pattern):
    folder = broken_folder(tmp_path)
    with refuses(DataError, 2, folder / "3.txt", tmp_path / "gone.txt", folder / "inner/more", "--skip-unreadable"):
        documents(f"{folder}{pattern}")
    assert list(documents(f"{folder}{pattern}", skip_unreadable=True)) == ["one", "two"]
    assert (
        len(
            [
                said
                for said in caplog.messages
                if names(said, folder / "3.txt") or names(said, folder / "inner" / "more")
            ]
        )
        == 2
    )


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    folder = broken_folder(tmp_path)
    (folder / "3.txt").unlink()
    (folder / "inner" / "more").unlink()
    listed = os.listdir

    def refused(path):
        if Path(path).name == "inner":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("os.listdir", refused)
    for source in (folder, f"{folder}/**/*.txt", f"{folder}/*/*.txt"):
        with refuses(DataError, folder / "inner", "Permission denied"):
            documents(str(source))
    assert list(documents(str(folder), skip_unreadable=True)) == ["one"]


def test_a_file_that_is_none_or_may_not_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe.txt")
    with refuses(DataError, "pipe.txt", "file", "folder"):
        documents(str(tmp_path))
    (tmp_path / "pipe.txt").unlink()
    opened = os.open

    def refused(path, flags, *rest):
        if str(path).endswith("a.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr("os.open", refused)
    for source in (tmp_path, tmp_path / "a.txt", f"{tmp_path}/*.txt"):
        with refuses(DataError, "a.txt", "Permission denied"):
            documents(str(source))


def test_a_damaged_file_is_gone_past_when_told_to_and_what_stands_before_the_damage_is_kept(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no more")
    assert list(documents(str(tmp_path), skip_unreadable=True)) == ["x", "b"]
    logged(caplog, "a.jsonl", "line 2")
    logged(caplog, "c.parquet")


def test_what_a_folder_holds_besides_is_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.csv").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.txt").write_text("c")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.txt").write_text("d")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(documents(str(tmp_path))) == ["a", "d"]
    says(caplog.text, tmp_path / ".git", tmp_path / "inside" / "linked", "1 .csv")
    caplog.clear()
    assert list(documents(f"{tmp_path}/*")) == ["a"]
    logged(caplog, tmp_path / "elsewhere")


# Which files are text


def test_md_and_rst_are_text_and_other_files_by_their_suffix(tmp_path):
    for name in ("a.md", "b.rst", "c.py", "d.C", "e.json", "f.py.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"packed") if name.endswith("gz") else b"import x")
    assert [path.name for path in source_files(f"{tmp_path}/*.[mr][ds]*")] == ["a.md", "b.rst"]
    assert [path.name for path in source_files(str(tmp_path), suffixes=[".py", ".json"])] == [
        "c.py",
        "e.json",
        "f.py.gz",
    ]
    assert list(documents(str(tmp_path), suffixes=[".py", ".json"])) == ["import x", "import x", "packed"]
    assert list(documents(str(tmp_path / "c.py"), suffixes=[".py"])) == ["import x"]
    with refuses(DataError, "c.py", ".py", "--suffix"):
        documents(str(tmp_path / "c.py"))
    assert suffixes([".py,c", " .h , "]) == (".py", ".c", ".h")


def test_brackets_in_a_name_that_is_there_are_meant_literally(tmp_path):
    for name in ("data[1]", "data1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    assert list(documents(f"{tmp_path}/data[1]/*.txt")) == ["data[1]"]
    assert list(documents(f"{tmp_path}/data[12]/*.txt")) == ["data1"]


def test_relative_names_and_patterns_are_meant_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("one")
    for source in ("a", "a/1.txt", "a/*.txt", "*/*.txt", "**/*.txt", "../*/a/1.txt"):
        assert list(documents(source)) == ["one"]
    for source in ("none", "none/*.txt", "~nosuch/none"):
        with refuses(DataError, f"'{source}'"):
            documents(source)


def test_a_saved_dataset_that_lost_a_file_is_told(tmp_path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with refuses(DataError, tmp_path / "saved"):
        list(documents(str(tmp_path / "saved")))


def test_a_link_that_leads_back_ends_no_search(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("one")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert list(documents(f"{tmp_path}/**/*.txt")) == ["one"]


@pytest.mark.parametrize("form", ["dictionary", "string_view", "large dictionary"])
def test_every_form_of_text_in_parquet_is_text(tmp_path, form):
    column = pyarrow.array(["a", None, "b", "a"])
    match form:
        case "dictionary":
            column = column.dictionary_encode()
        case "string_view":
            column = column.cast(pyarrow.string_view())
        case "large dictionary":
            column = column.cast(pyarrow.large_string()).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    stored = pyarrow.parquet.read_schema(tmp_path / "a.parquet").field("text").type
    assert pyarrow.types.is_string_view(stored) or pyarrow.types.is_dictionary(stored)
    assert list(documents(str(tmp_path / "a.parquet"))) == ["a", "b", "a"]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view()])
def test_text_that_a_column_holds_as_bytes_is_text_where_it_is_utf8(tmp_path, kind):
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array([b"a\xc3\xa9", None], kind)}), tmp_path / "a.parquet"
    )
    assert list(documents(str(tmp_path / "a.parquet"))) == ["a\u00e9"]
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([b"a", b"\xff"], kind)}), tmp_path / "b.parquet")
    with refuses(DataError, "b.parquet", "row 2", "UTF-8"):
        list(documents(str(tmp_path / "b.parquet")))


def test_a_column_without_any_text_is_a_column_of_empty_documents(tmp_path, caplog):
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(3)}), tmp_path / "a.parquet")
    assert list(documents(str(tmp_path / "a.parquet"))) == []
    logged(caplog, "3 documents")


def test_suffixes_in_capitals_mean_the_same(tmp_path):
    (tmp_path / "A.TXT").write_text("a")
    (tmp_path / "B.JSONL.GZ").write_bytes(gzip.compress(json_lines(["b"])))
    write_parquet(tmp_path / "C.Parquet", ["c"])
    assert list(documents(str(tmp_path))) == ["a", "b", "c"]


def test_hidden_files_and_other_splits_that_are_not_read_are_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".b.txt").write_text("b")
    (tmp_path / ".profile").touch()
    assert list(documents(str(tmp_path))) == ["a"]
    logged(caplog, "1 hidden", ".b.txt")
    caplog.clear()
    saved = {split: datasets.Dataset.from_dict({"text": [split]}) for split in ("train", "validation", "extra")}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    assert list(documents(str(tmp_path / "saved"))) == ["train"]
    logged(caplog, "extra", "validation")
