"""Sequences are cut from shards as promised, and shards that do not fit are refused before training starts."""

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.messages import logged, refuses, says
from trainer.data import shards
from trainer.data.find import natural_key
from trainer.data.layouts import open_shard
from trainer.data.shards import ShardWriter, TokenDataset, resolve_shards
from trainer.errors import DataError


def test_sequences_overlap_by_one_token_and_never_cross_shards(make_dataset):
    dataset = make_dataset(17, 8, 9, 30)
    assert (dataset.num_sequences, dataset.num_tokens) == (2 + 0 + 1 + 3, 64)
    starts = [0, 8, 25, 34, 42, 50]
    expected = np.stack([np.arange(start, start + 9) for start in starts])
    assert np.array_equal(dataset.sequences(np.arange(6)), expected)
    assert np.array_equal(dataset.sequences(np.array([5, 0, 5])), expected[[5, 0, 5]])
    assert dataset.sequences(np.array([], dtype=np.int64)).shape == (0, 9)


def test_more_shards_than_open_maps_are_read(make_dataset, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN_MAPS", 2)
    dataset = make_dataset(*[9] * 7)
    for _ in range(2):
        assert dataset.sequences(np.arange(7))[:, 0].tolist() == [0, 9, 18, 27, 36, 45, 54]
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".bin")}
    assert len(mapped & {str(shard.path) for shard in dataset.shards}) == 2


@pytest.mark.parametrize(("vocab_size", "magic", "itemsize"), [(65536, 20240520, 2), (65537, 20240801, 4)])
def test_written_shards_are_llmc_files(tmp_path, vocab_size, magic, itemsize):
    path = tmp_path / "a.bin"
    with ShardWriter(path, vocab_size) as shard:
        shard.write(np.array([1, 2, vocab_size - 1]))
        shard.write(np.array([], dtype=np.int64))
        shard.write(np.array([5], dtype=np.uint32))
    words = np.frombuffer(path.read_bytes()[:1024], dtype="<i4")
    assert words[:3].tolist() == [magic, 1 if itemsize == 2 else 7, 4]
    assert not words[3:].any()
    assert path.stat().st_size == 1024 + 4 * itemsize
    assert open_shard(path).tokens().tolist() == [1, 2, vocab_size - 1, 5]


def test_a_shard_that_was_not_finished_does_not_appear(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a.bin", 100) as shard:
        shard.write(np.arange(5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_shard_takes_no_id_outside_the_vocabulary_and_no_more_than_its_header_counts(tmp_path, monkeypatch):
    with refuses(DataError, "3 to 100", "vocabulary of 100"):
        with ShardWriter(tmp_path / "a.bin", 100) as shard:
            shard.write(np.array([3, 100]))
    monkeypatch.setattr(shards, "MAX_SHARD_TOKENS", 3)
    with refuses(DataError, "3 tokens"), ShardWriter(tmp_path / "a.bin", 100) as shard:
        shard.write(np.arange(4))


def test_the_fingerprint_holds_names_counts_content_and_length_but_not_the_folder(make_dataset, tmp_path):
    dataset = make_dataset(1000, 1000)
    paths = [shard.path for shard in dataset.shards]
    assert len(dataset.fingerprint) == 32
    moved = tmp_path / "moved"
    moved.mkdir()
    copies = [moved / path.name for path in paths]
    for path, copy in zip(paths, copies):
        copy.write_bytes(path.read_bytes())
    assert TokenDataset(copies, 8, 50257).fingerprint == dataset.fingerprint
    different = {dataset.fingerprint, TokenDataset(copies, 9, 50257).fingerprint}
    different.add(TokenDataset(copies[::-1], 8, 50257).fingerprint)
    different.add(TokenDataset(copies[:1], 8, 50257).fingerprint)
    changed = bytearray(copies[0].read_bytes())
    changed[1500] ^= 1
    copies[0].write_bytes(changed)
    different.add(TokenDataset(copies, 8, 50257).fingerprint)
    different.add(TokenDataset([copies[0].rename(moved / "other.bin"), copies[1]], 8, 50257).fingerprint)
    assert len(different) == 6


def test_the_fingerprint_is_pinned(make_dataset):
    assert make_dataset(1000).fingerprint == "9a56f7c2545fab9b9312b4eeb083d0c2"


@pytest.mark.parametrize("place", [0, 77_000, 199_999])
def test_an_id_outside_the_vocabulary_is_found_when_opening(tmp_path, place):
    tokens = np.zeros(200_000, dtype=np.uint16)
    tokens[place] = 4096
    with ShardWriter(tmp_path / "a.bin", 50257) as shard:
        shard.write(tokens)
    with refuses(DataError, "a.bin", "token id 4,096", "vocabulary of 4,096", "tokenizer"):
        TokenDataset([tmp_path / "a.bin"], 1024, 4096)


def test_an_id_outside_the_vocabulary_that_no_sample_saw_is_found_when_read(tmp_path):
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    tokens = np.zeros(1_000_000, dtype=np.uint16)
    for path, id in zip(paths, (7, 60_000)):
        tokens[100_000] = id
        with ShardWriter(path, 65536) as shard:
            shard.write(tokens)
    dataset = TokenDataset(paths, 1000, 50257)
    dataset.sequences(np.arange(dataset.num_sequences // 2))
    with refuses(DataError, "b.bin", "token id 60,000"):
        dataset.sequences(np.array([0, 999 + 100]))


def test_negative_ids_are_outside_every_vocabulary(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, -1, 3] * 10))
    with refuses(DataError, "token id -1"):
        TokenDataset([tmp_path / "a.npy"], 8, 100)


def test_uint32_read_as_uint16_is_recognised_by_its_zeros(tmp_path):
    np.arange(1, 40_000, dtype="<u4").tofile(tmp_path / "a.bin")
    with refuses(DataError, "uint32"):
        TokenDataset([tmp_path / "a.bin"], 8, 50257, "uint16")
    assert TokenDataset([tmp_path / "a.bin"], 8, 50257, "uint32").num_tokens == 39_999


def test_uint16_read_as_uint32_is_outside_the_vocabulary(tmp_path):
    np.arange(1, 40_001, dtype="<u2").tofile(tmp_path / "a.bin")
    with refuses(DataError, "a.bin", "vocabulary of 50,257", "type"):
        TokenDataset([tmp_path / "a.bin"], 8, 50257, "uint32")


def test_a_shard_too_short_for_one_sequence_says_what_to_do(make_dataset):
    with refuses(DataError, "16 tokens", "length 8", 9, "sequence_length"):
        make_dataset(8, 8)


def test_a_dataset_needs_shards_and_a_length(make_dataset):
    with refuses(DataError, "launch.sh prepare"):
        TokenDataset([], 8, 100)
    with refuses(DataError, "sequence_length", 0):
        make_dataset(8, sequence_length=0)


@pytest.fixture
def folder(tmp_path):
    shards = ["c_val_000000.bin", "c_train_000010.bin", "c_train_000002.bin", ".c_train_000003.bin"]
    (tmp_path / "corpus").mkdir()
    for name in [*shards, "notes.txt", "x.idx"]:
        (tmp_path / "corpus" / name).touch()
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_folders_globs_and_files_are_found_in_natural_order(folder):
    every = ["c_train_000002.bin", "c_train_000010.bin", "c_val_000000.bin"]
    assert names(resolve_shards(["corpus"], folder)) == every
    assert names(resolve_shards(["corpus/*train*"], folder)) == ["c_train_000002.bin", "c_train_000010.bin"]
    assert names(resolve_shards([str(folder / "corpus" / "c_val_000000.bin")], folder)) == ["c_val_000000.bin"]
    assert names(sorted(map(folder.joinpath, ["p-10", "p-9", "p-9b"]), key=natural_key)) == ["p-9", "p-9b", "p-10"]


def test_a_folder_never_mixes_validation_into_training_when_a_split_is_asked_for(folder):
    assert names(resolve_shards(["corpus"], folder, "train")) == ["c_train_000002.bin", "c_train_000010.bin"]
    assert names(resolve_shards(["corpus"], folder, "validation")) == ["c_val_000000.bin"]
    (folder / "corpus" / "c_val_000000.bin").unlink()
    with refuses(DataError, "corpus", "validation shards"):
        resolve_shards(["corpus"], folder, "validation")


def test_a_shard_named_twice_counts_once_and_is_told(folder, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(resolve_shards(["corpus", "corpus/*_val_*"], folder)) == 3
    logged(caplog, "1 shards")


@pytest.mark.parametrize("pattern", ["corpus", "corpus/*.bin", "corp*/*_train_*", "corpus/c_train_000099.bin"])
def test_a_shard_that_is_there_and_cannot_be_read_is_named_and_left_out_only_when_told_to(folder, caplog, pattern):
    (folder / "corpus" / "c_train_000099.bin").symlink_to(folder / "gone.bin")
    with refuses(DataError, "c_train_000099.bin", "gone.bin", "data.skip_unreadable"):
        resolve_shards([pattern], folder)
    with caplog.at_level(logging.WARNING):
        found = (
            resolve_shards(["corpus/*_val_*", pattern], folder, skip_unreadable=True)
            if "99" not in pattern
            else ["left out"]
        )
    assert len(found) >= 1
    assert "99" in pattern or "c_train_000099.bin" in caplog.text


def test_a_shard_that_counts_again_under_another_path_is_told(folder, caplog):
    (folder / "again.bin").symlink_to(folder / "corpus" / "c_train_000002.bin")
    with caplog.at_level(logging.WARNING):
        assert len(resolve_shards(["corpus", "again.bin"], folder)) == 4
    logged(caplog, 1, "again.bin")


def test_subfolders_of_a_folder_of_shards_are_told(folder, caplog):
    (folder / "corpus" / "more").mkdir()
    (folder / "corpus" / "more" / "d_train_000001.bin").touch()
    (folder / "corpus" / "notes").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(resolve_shards(["corpus"], folder)) == 3
    logged(caplog, folder / "corpus" / "more")
    assert "notes" not in caplog.text


def test_a_project_folder_with_brackets_has_shards(folder):
    project = folder.rename(folder.with_name("project[1]"))
    assert len(resolve_shards(["corpus/*.bin"], project)) == 3
    with refuses(DataError, "[[]"):
        resolve_shards(["corpus[2]/*.bin"], project)


def test_what_stands_for_no_shard_says_how_to_make_some(folder):
    (folder / "empty").mkdir()
    for pattern in ("empty", "none", "none/*.bin"):
        with refuses(DataError, "launch.sh prepare SOURCE"):
            resolve_shards([pattern], folder)
    with refuses(DataError, "no shards"):
        resolve_shards([], folder)


def test_shards_that_are_too_short_for_a_sequence_are_told_and_so_is_a_great_remainder(make_dataset, caplog):
    make_dataset(7, 8, 8001)  # a sequence of 8 needs 9 tokens
    logged(caplog, "2 of 3")
    logged(caplog, "15 of 8,016")
    caplog.clear()
    make_dataset(*[15] * 20)
    logged(caplog, "120 of 300")
    caplog.clear()
    make_dataset(8001, 8006)
    assert not caplog.text


def test_shards_in_another_form_that_a_folder_holds_are_told_and_capitals_are_read(folder, caplog):
    for name in ("d_train_000001.bin.zst", "e_train_000001.bin.part", "f_train_000001.ds.metadata", "readme.md"):
        (folder / "corpus" / name).touch()
    (folder / "corpus" / "G_TRAIN_000001.BIN").touch()
    assert "G_TRAIN_000001.BIN" in names(resolve_shards(["corpus"], folder, "train"))
    says(caplog.text, "1 .zst", "1 .part", "1 hidden")
    assert ".metadata" not in caplog.text
    assert ".md" not in caplog.text
