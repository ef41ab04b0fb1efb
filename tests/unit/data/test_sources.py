"""Documents come out of every kind of source, and what is wrong with one is said with its place."""

import gzip
import json
import logging
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from trainer.data.sources import documents, estimated_text_bytes, rows, source_files, source_identity
from trainer.errors import DataError

TEXTS = ["To be, or not to be", "naive caf\u00e9 \U0001f600\nsecond line", "x" * 5000, "<|endoftext|>"]


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
            (path / "readme.md").write_text("not read")
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
        with pytest.raises(DataError, match="no key 'text or content'; it has: .*body.*--text-key"):
            list(documents(str(tmp_path / name)))
        with pytest.raises(DataError, match="no key 'txt'"):
            list(documents(str(tmp_path / name), "txt"))


def test_documents_without_text_are_left_out_and_counted(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "x"}\n{"text": null}\n')
    with caplog.at_level(logging.WARNING):
        assert list(documents(str(tmp_path / "a.jsonl"))) == ["x"]
    assert "2 documents without text" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: .* at column"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', "a.jsonl, line 2 has no key 'text'; it has: body"),
        ("a.jsonl", b'["x"]\n', "line 1 holds list; a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' is int, not text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is not UTF-8: byte 0xff at 10"),
        ("a.json", b'[{"text": "x"},\n', "a.json, line 2: .*array of objects"),
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8: byte 0xe9 at 3"),
        ("a.parquet", b"PAR1 no more", "cannot be read as parquet"),
        ("a.jsonl.gz", gzip.compress(json_lines(TEXTS))[:-20], "cannot be read to its end"),
        ("a.jsonl.gz", flipped(gzip.compress(json_lines(TEXTS * 9), mtime=0)), "a.jsonl.gz, line 1, cannot be read to its end: Error -3"),
        ("a.txt.gz", flipped(gzip.compress(b"x" * 5000, mtime=0)), "a.txt.gz cannot be read to its end: Error -3"),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 200_000, "a.jsonl, line 2 holds JSON that cannot be read .*recursion"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "line 1 holds JSON that cannot be read .*5000 digits"),
        ("a.json", b"[" * 200_000, "a.json holds JSON that cannot be read .*recursion"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "a.json holds JSON that cannot be read .*5000 digits"),
        ("a.jsonl.zst", b"no zstd at all", "cannot be read to its end"),
        ("a.csv", b"a,b", "is a .csv file. Known are"),
    ],
)
def test_a_damaged_file_is_told_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(documents(str(tmp_path / name)))


def test_a_truncated_zst_file_is_not_taken_for_a_short_one(tmp_path):
    write_zst(tmp_path / "whole.zst", json_lines([str(i) * 50 for i in range(5000)]))
    content = (tmp_path / "whole.zst").read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        list(documents(str(tmp_path / "a.jsonl.zst")))


def test_a_column_that_is_not_text_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1, 2])
    with pytest.raises(DataError, match="column 'text' holds int64, not text"):
        list(documents(str(tmp_path / "a.parquet")))


def test_a_source_that_is_nothing_is_told_what_there_is(tmp_path):
    with pytest.raises(DataError, match="no file of text. Known are .* For a dataset of the hub write hf:roneneldan/T"):
        documents("roneneldan/TinyStories")
    (tmp_path / "readme.md").touch()
    with pytest.raises(DataError, match="stands for no file of text"):
        documents(str(tmp_path))


def test_the_embedded_corpus_has_two_splits():
    assert len(list(documents("embedded:shakespeare"))) == 163
    held_out = list(documents("embedded:shakespeare@validation"))
    assert held_out == list(documents("embedded:shakespeare", split="validation")) and len(held_out) == 19
    with pytest.raises(DataError, match="no embedded corpus"):
        documents("embedded:milton")


def test_a_saved_dataset_with_splits_is_read_by_split(tmp_path):
    saved = {split: datasets.Dataset.from_dict({"text": [split]}) for split in ("train", "validation")}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    assert list(documents(str(tmp_path / "saved"))) == ["train"]
    assert list(documents(str(tmp_path / "saved"), split="validation")) == ["validation"]
    with pytest.raises(DataError, match="no split 'test'; it has: train, validation"):
        list(documents(str(tmp_path / "saved"), split="test"))


def test_a_hub_dataset_is_streamed_by_name_config_and_split(monkeypatch):
    asked = []

    def load(path, config, *, split, streaming):
        asked.append((path, config, split, streaming))
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(documents("hf:owner/name:config@test")) == ["a", "b"]
    assert list(documents("hf:owner/name")) == ["a", "b"]
    assert asked == [("owner/name", "config", "test", True), ("owner/name", None, "train", True)]


def test_a_hub_that_cannot_be_reached_is_one_paragraph(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="hf:owner/name, split 'train', cannot be read: no network. Check its name"):
        list(documents("hf:owner/name"))


def test_a_machine_without_datasets_is_told_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
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
    with pytest.raises(DataError, match=r"a.txt is a .txt file; .jsonl, .ndjson, .json were expected"):
        list(rows(str(tmp_path / "a.txt")))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-10])
    with pytest.raises(DataError, match="cannot be read"):
        list(rows(str(tmp_path / "a.jsonl.gz")))
    with pytest.raises(DataError, match="cannot be read"):
        list(rows(str(tmp_path / "b.jsonl")))


def test_rows_of_the_hub_are_those_of_the_named_split(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split, streaming):
        asked.append((path, config, split, streaming))
        return [{"a": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(rows("hf:allenai/ai2_arc:ARC-Easy@test")) == [("hf:allenai/ai2_arc:ARC-Easy@test, row 1", {"a": 1})]
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test", True)]
