"""A prepared folder is whole, says what it holds, does not depend on who made it, and is never mixed with another."""

import errno
import fcntl
import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from tests.corpora import train_bpe, verify_corpus
from tests.hub_server import Repository
from tests.messages import logged, names, refuses
from trainer import files
from trainer.config.schema import DataConfig
from trainer.data import prepare as module
from trainer.data.assets import embedded_documents
from trainer.data.bpe import tiktoken_lines
from trainer.data.corpus import open_corpus
from trainer.data.embedded_corpus import prepare_embedded
from trainer.data.hold_out import choose
from trainer.data.manifest import missing_shards, read_manifest
from trainer.data.prepare import prepare
from trainer.data.shards import TokenDataset, open_shard, resolve_shards
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import DataError

TEXTS = [f"document {i} " + "word " * (i % 17) for i in range(300)]


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def stream(folder, split: str) -> list[int]:
    manifest = read_manifest(folder)
    parts = [open_shard(folder / s["file"]).tokens() for s in manifest["shards"] if s["split"] == split]
    return np.concatenate(parts).tolist() if parts else []


def expected(texts, name="gpt2") -> list[int]:
    tokenizer = load_tokenizer(name)
    return [id for text in texts for id in [tokenizer.eot_id, *tokenizer.encode(text)]]


def test_shards_hold_the_documents_in_order_each_after_its_end_of_text(source, tmp_path):
    out = tmp_path / "out"
    seen = []
    report = prepare(
        [source],
        out,
        "gpt2",
        validation_fraction=0.1,
        tokens_per_shard=1000,
        name="web",
        num_workers=2,
        progress=lambda documents, tokens: seen.append((documents, tokens)),
    )
    rule = choose(TEXTS, 0.1)
    held_out, kept = (
        [text for text in TEXTS if rule.parts(text) == [(split, text)]] for split in ("validation", "train")
    )
    assert 10 < len(held_out) < 60
    assert len(held_out) + len(kept) == len(TEXTS)
    assert stream(out, "train") == expected(kept)
    assert stream(out, "validation") == expected(held_out)
    manifest = verify_corpus(out)
    assert [shard["tokens"] for shard in manifest["shards"] if shard["split"] == "train"][:-1] == [1000, 1000, 1000]
    assert [s["file"] for s in manifest["shards"]][:2] == ["web_train_000001.bin", "web_train_000002.bin"]
    assert manifest["shards"][-1]["file"] == "web_val_000000.bin"
    assert sum(shard["documents"] for shard in manifest["shards"]) == manifest["documents"] == len(TEXTS)
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    assert manifest["text_bytes"] == text_bytes
    assert manifest["bytes_per_token"] == text_bytes / manifest["tokens"]
    assert (manifest["tokenizer"], manifest["vocab_size"], manifest["eot_id"]) == ("gpt2", 50257, 50256)
    assert (manifest["eot_placement"], manifest["dtype"]) == ("before", "uint16")
    assert seen[-1] == (len(TEXTS), manifest["tokens"])
    assert (report.train_documents, report.validation_documents) == (len(kept), len(held_out))
    assert manifest["baselines"]["unigram"] > manifest["baselines"]["bigram"] > 0
    assert not report.reused
    assert not list(out.glob(".*"))


def test_what_is_written_does_not_depend_on_the_number_of_workers(source, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.encode.BATCH_CHARACTERS", 100)
    for workers in (1, 5):
        prepare([source], tmp_path / str(workers), "gpt2", num_workers=workers, name="x", tokens_per_shard=700)
    digests = [[shard["sha256"] for shard in verify_corpus(tmp_path / workers)["shards"]] for workers in "15"]
    assert digests[0] == digests[1]
    assert len(digests[0]) > 2


def test_validation_is_chosen_by_the_text_and_not_by_its_place(source, tmp_path):
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(reversed(open(source).readlines())))
    prepare([source], tmp_path / "a", "bytes", validation_fraction=0.1)
    prepare([str(backwards)], tmp_path / "b", "bytes", validation_fraction=0.1)
    assert sorted(stream(tmp_path / "a", "validation")) == sorted(stream(tmp_path / "b", "validation"))


def test_validation_sources_replace_the_fraction(source, tmp_path):
    (tmp_path / "held.txt").write_text("held out")
    prepare([source], tmp_path / "out", "gpt2", validation_sources=[str(tmp_path / "held.txt")])
    assert stream(tmp_path / "out", "validation") == expected(["held out"])
    assert stream(tmp_path / "out", "train") == expected(TEXTS)


def test_a_corpus_without_validation_is_told(source, tmp_path, caplog):
    report = prepare([source], tmp_path / "out", "gpt2", validation_fraction=0.0)
    assert report.validation_tokens == 0
    assert read_manifest(tmp_path / "out")["baselines"] is None
    logged(caplog, "no document", "validation")


def test_the_same_request_returns_at_once_and_rewrites_nothing(source, tmp_path):
    out = tmp_path / "out"
    first = prepare([source], out, "gpt2")
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare([source], out, "gpt2")
    assert again.reused
    assert again.train_tokens == first.train_tokens
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_another_request_does_not_overwrite_a_finished_corpus(source, tmp_path):
    out = tmp_path / "out"
    prepare([source], out, "gpt2")
    with refuses(DataError, out, "tokenizer_sha256"):
        prepare([source], out, "bytes")
    with open(source, "a") as file:
        file.write('{"text": "more"}\n')
    with refuses(DataError, out, "sources"):
        prepare([source], out, "gpt2")
    verify_corpus(out)


def test_a_finished_corpus_that_lost_a_shard_is_not_taken_for_whole(source, tmp_path):
    out = tmp_path / "out"
    prepare([source], out, "gpt2")
    (out / "out_train_000001.bin").unlink()
    with refuses(DataError, "out_train_000001.bin", "missing", out):
        prepare([source], out, "gpt2")


def test_what_a_killed_attempt_left_is_written_again(source, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], out, "gpt2", tokens_per_shard=300, validation_fraction=0.1)
    assert read_manifest(out) is None
    assert len(list(out.glob("*.bin"))) > 5
    monkeypatch.undo()
    (out / ".out_train_000001.bin.partial-1").touch()
    prepare([source], out, "gpt2", tokens_per_shard=100_000, validation_fraction=0.1)
    left = sorted(path.name for path in out.iterdir())
    assert left == ["manifest.json", "out_train_000001.bin", "out_val_000000.bin"]


def test_shards_of_somebody_else_are_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "fineweb_train_000001.bin").write_bytes(b"precious")
    with refuses(DataError, "fineweb_train_000001.bin", "manifest.json"):
        prepare([source], out, "gpt2")
    assert (out / "fineweb_train_000001.bin").read_bytes() == b"precious"


def test_two_processes_do_not_prepare_one_folder_at_once(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".preparing", "w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with refuses(DataError, out, "another process"):
            prepare([source], out, "gpt2")


def test_a_full_disk_is_one_paragraph_and_leaves_no_manifest(source, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "fsync_folder", full)
    with refuses(DataError, tmp_path / "out", "No space left on device"):
        prepare([source], tmp_path / "out", "gpt2")
    monkeypatch.undo()
    assert read_manifest(tmp_path / "out") is None
    assert not prepare([source], tmp_path / "out", "gpt2").reused


def test_other_errors_of_the_system_are_not_hidden(source, tmp_path, monkeypatch):
    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "fsync_folder", broken)
    with pytest.raises(OSError, match="Input/output"):
        prepare([source], tmp_path / "out", "gpt2")


def test_a_disk_that_is_too_small_is_told_beforehand(source, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with refuses(DataError, "1 kB"):
        prepare([source], tmp_path / "out", "gpt2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sources": []}, ["sources"]),
        ({"validation_fraction": 1.0}, ["validation_fraction", "1.0"]),
        ({"tokens_per_shard": 0}, ["tokens_per_shard", 0]),
        ({"num_workers": 0}, ["num_workers", 0]),
        ({"validation_fraction": 0.9999999}, ["validation_fraction", "no document"]),
        ({"tokenizer": "gpt3"}, ["'gpt3'", "'gpt2'"]),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(source, tmp_path, arguments, words):
    arguments = {"sources": [source], "out": tmp_path / "out", "tokenizer": "gpt2", **arguments}
    with refuses(DataError, *words):
        prepare(**arguments)


def test_a_vocabulary_of_ones_own_travels_with_the_corpus(source, tmp_path):
    vocabulary = tmp_path / "own.tiktoken"
    vocabulary.write_bytes(tiktoken_lines(train_bpe(TEXTS, 400)))
    prepare([source], tmp_path / "out", str(vocabulary), name="own")
    vocabulary.unlink()
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    manifest = read_manifest(moved)
    tokenizer = load_tokenizer(manifest["tokenizer"])
    assert tokenizer.sha256 == manifest["tokenizer_sha256"]
    assert tokenizer.eot_id == manifest["eot_id"]


def test_text_that_utf8_cannot_write_is_prepared_all_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "out", "bytes", validation_fraction=0.0)
    assert load_tokenizer("bytes").decode(stream(tmp_path / "out", "train")[1:]) == "a\ufffdb"


def test_shards_that_are_missing_or_of_another_size_are_found_at_a_glance(source, tmp_path):
    out = tmp_path / "out"
    prepare([source], out, "gpt2", tokens_per_shard=1000, validation_fraction=0.1)
    (out / "out_train_000001.bin").write_bytes(b"")
    (out / "out_val_000000.bin").unlink()
    problems = "; ".join(missing_shards(out, read_manifest(out)))
    assert "out_train_000001.bin has 0 bytes" in problems
    assert "out_val_000000.bin is missing" in problems


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["damaged"]),
        ("[]", ["format_version", "None"]),
        ('{"format_version": 2}', ["format_version", 2]),
        ('{"format_version": 1, "name": "x"}', ["baselines"]),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, content, words):
    (tmp_path / "manifest.json").write_text(content)
    with refuses(DataError, tmp_path / "manifest.json", *words):
        read_manifest(tmp_path)


# The embedded corpus


def test_the_embedded_corpus_holds_twelfth_night_for_validation(tmp_path):
    folder = prepare_embedded("shakespeare", "shakespeare", tmp_path)
    assert folder == tmp_path / "shakespeare-shakespeare"
    manifest = verify_corpus(folder)
    assert manifest["splits"]["train"]["tokens"] == 368_982
    assert manifest["splits"]["validation"] == {
        "documents": 19,
        "tokens": 40_529,
        "text_bytes": 114_820,
        "bytes_per_token": 114_820 / 40_529,
    }
    assert stream(folder, "validation") == expected(embedded_documents("shakespeare", "validation"), "shakespeare")
    assert manifest["baselines"]["unigram"] == pytest.approx(6.350, abs=1e-3)
    assert manifest["baselines"]["bigram"] == pytest.approx(5.122, abs=1e-3)
    assert TokenDataset(resolve_shards([str(folder)], tmp_path, "train"), 1024, 4096).num_sequences == 360


def test_the_embedded_corpus_is_made_once(tmp_path):
    folder = prepare_embedded("shakespeare", "bytes", tmp_path)
    time = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare_embedded("shakespeare", "bytes", tmp_path) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == time


@pytest.mark.parametrize("damage", ["no shard", "no manifest", "damaged manifest", "another text"])
def test_an_embedded_corpus_that_is_not_right_is_made_again(tmp_path, damage):
    folder = prepare_embedded("shakespeare", "bytes", tmp_path)
    manifest = folder / "manifest.json"
    match damage:
        case "no shard":
            (folder / "shakespeare_val_000000.bin").unlink()
        case "no manifest":
            manifest.unlink()
        case "damaged manifest":
            manifest.write_text("{")
        case "another text":
            changed = json.loads(manifest.read_text())
            changed["request"]["sources"][0][1] = "0" * 64
            manifest.write_text(json.dumps(changed))
    leftover = tmp_path / f".building-shakespeare-bytes-{platform.node()}-1"
    leftover.mkdir()
    verify_corpus(prepare_embedded("shakespeare", "bytes", tmp_path))
    assert not leftover.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shakespeare-bytes.lock", "shakespeare-bytes"]


@pytest.mark.parametrize("its_manifest", ["whole", "damaged", "none"])
def test_a_folder_of_somebody_in_the_place_of_the_embedded_corpus_is_left_as_it_is(tmp_path, its_manifest):
    """`trainer prepare mine.txt --out .data/shakespeare-bytes` is an obvious name."""
    (tmp_path / "mine.txt").write_text("my own words " * 400)
    folder = tmp_path / "shakespeare-bytes"
    prepare([str(tmp_path / "mine.txt")], folder, "bytes", validation_fraction=0.0)
    if its_manifest != "whole":
        (folder / "manifest.json").write_text("{") if its_manifest == "damaged" else (folder / "manifest.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with refuses(DataError, folder):
        prepare_embedded("shakespeare", "bytes", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_processes_that_prepare_it_at_once_find_one_whole_corpus(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trainer.data.embedded_corpus import prepare_embedded; from tests.corpora import verify_corpus; "
        "verify_corpus(prepare_embedded('shakespeare', 'bytes', Path(sys.argv[1])))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shakespeare-bytes.lock", "shakespeare-bytes"]


def test_another_machine_that_was_faster_is_accepted(tmp_path, monkeypatch):
    def slower(staging, final):
        files.move_folder(prepare_embedded_elsewhere(), final)
        files.move_folder(staging, final)

    def prepare_embedded_elsewhere():
        monkeypatch.setattr(files, "commit_folder", original)
        return prepare_embedded("shakespeare", "bytes", tmp_path / "elsewhere")

    original = files.commit_folder
    monkeypatch.setattr(files, "commit_folder", slower)
    verify_corpus(prepare_embedded("shakespeare", "bytes", tmp_path / "here"))
    left = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert left == [".shakespeare-bytes.lock", "shakespeare-bytes"]


def test_a_corpus_that_cannot_be_committed_is_an_error(tmp_path, monkeypatch):
    def refused(staging, final):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "commit_folder", refused)
    with pytest.raises(OSError, match="Input/output"):
        prepare_embedded("shakespeare", "bytes", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shakespeare-bytes.lock"]


def test_an_unknown_embedded_corpus_is_answered_with_the_nearest(tmp_path):
    with refuses(DataError, "'shakespeare'"):
        prepare_embedded("shakspere", "gpt2", tmp_path)


# What is held out


def write_texts(folder, sizes):
    """A text of as many words as it says a file; no two are equal."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.txt").write_text(" ".join(f"word{number}x{i}" for i in range(size)))
    return str(folder)


UNEVEN = [3000 if number % 25 == 0 else 20 + number for number in range(151)]


@pytest.mark.parametrize(
    ("sizes", "fraction"),
    [(UNEVEN, 0.005), (UNEVEN, 0.05), ([400] * 151, 0.005), ([5000, 5000], 0.02), ([9000], 0.05), ([9000], 0.5)],
)
def test_the_share_held_out_is_one_of_tokens(tmp_path, sizes, fraction):
    report = prepare([write_texts(tmp_path / "texts", sizes)], tmp_path / "out", "bytes", validation_fraction=fraction)
    share = report.validation_tokens / (report.validation_tokens + report.train_tokens)
    assert report.validation_documents >= 1
    assert report.train_documents >= 1
    assert 0.5 * fraction <= share <= 1.5 * fraction
    manifest = read_manifest(tmp_path / "out")
    assert manifest["repeats"] == {
        what: {"documents": 0, "text_bytes": 0} for what in ("held_out_in_train", "within_train")
    }


def test_one_long_document_is_divided_and_loses_nothing(tmp_path):
    source = write_texts(tmp_path / "texts", [500])
    prepare([source], tmp_path / "out", "bytes", validation_fraction=0.1)
    begin, end = (
        load_tokenizer("bytes").decode(stream(tmp_path / "out", split)[1:]) for split in ("train", "validation")
    )
    assert begin + end == (tmp_path / "texts" / "0.txt").read_text()
    assert begin.endswith(" ")


def test_with_nothing_to_divide_there_is_a_warning_and_no_validation(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("a")
    assert prepare([str(tmp_path / "a.txt")], tmp_path / "out", "bytes").validation_tokens == 0
    logged(caplog, "no document", "validation")


def test_the_choice_is_bounded_in_memory_and_stays_a_share_of_the_text(monkeypatch):
    monkeypatch.setattr("trainer.data.hold_out.MAX_KEPT", 200)
    texts = [f"{i} " * (1 + i % 40) for i in range(5000)]
    for fraction in (0.005, 0.2):
        rule = choose(texts, fraction)
        held = sum(len(text) for text in texts if rule.parts(text)[0][0] == "validation")
        assert 0.7 * fraction < held / sum(map(len, texts)) < 1.3 * fraction


def test_what_is_fetched_is_fetched_once(tmp_path, monkeypatch, hub_server):
    hub_server.repositories["some/set"] = Repository({}, kind="dataset")
    fetched = []

    def hub_rows(dataset, split):
        for number in range(60):
            fetched.append(number)
            yield f"row {number}", {"text": f"document {number} of the hub " * 9}

    monkeypatch.setattr("trainer.data.sources.hub_rows", hub_rows)
    monkeypatch.setattr("trainer.data.texts.MAX_MEASURED_BYTES", 3000)
    report = prepare(["hf:some/set"], tmp_path / "out", "bytes", validation_fraction=0.2)
    assert fetched == list(range(60))
    assert report.train_documents + report.validation_documents == 60
    assert 0.05 < report.validation_tokens / (report.train_tokens + report.validation_tokens) < 0.5


# Text that is on both sides, or there twice


def test_held_out_text_that_is_trained_on_is_told_with_its_share(source, tmp_path, caplog):
    copied = tmp_path / "copied.jsonl"
    copied.write_text("".join(open(source).readlines()[:30]) + '{"text": "new text"}\n')
    (told,) = prepare([source], tmp_path / "all", "bytes", validation_sources=[source]).repeats
    assert "300 of 300 documents" in told
    assert "100.0%" in told
    for _ in range(2):  # also where it was prepared before
        (told,) = prepare([source], tmp_path / "some", "bytes", validation_sources=[str(copied)]).repeats
        assert "30 of 31 documents" in told
    assert read_manifest(tmp_path / "some")["repeats"]["held_out_in_train"]["documents"] == 30
    open_corpus(DataConfig(corpus=str(tmp_path / "some")), 16)
    logged(caplog, "30 of 31")


def test_a_file_that_is_given_twice_counts_once_and_is_told(source, tmp_path, caplog):
    (tmp_path / "linked.jsonl").symlink_to(source)
    report = prepare(
        [source, str(tmp_path / "*.jsonl")], tmp_path / "out", "bytes", validation_sources=[source, source]
    )
    assert (report.train_documents, report.validation_documents) == (len(TEXTS), len(TEXTS))
    assert len([said for said in caplog.messages if names(said, "1 of its 1 files")]) == 2
    (tmp_path / "copy.jsonl").write_bytes(open(source, "rb").read())
    (told,) = prepare(
        [source, str(tmp_path / "copy.jsonl")], tmp_path / "copies", "bytes", validation_fraction=0.0
    ).repeats
    assert "300 of 600 documents" in told
    assert "50.0%" in told


def test_a_request_of_an_earlier_version_is_known_again(source, tmp_path):
    out = tmp_path / "out"
    prepare([source], out, "gpt2")
    manifest = json.loads((out / "manifest.json").read_text())
    assert not {"suffixes", "skip_unreadable"} & manifest["request"].keys()
    del manifest["repeats"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert prepare([source], out, "gpt2").reused
    with refuses(DataError, "skip_unreadable"):
        prepare([source], out, "gpt2", skip_unreadable=True)
