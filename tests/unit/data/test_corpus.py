import json

import numpy as np
import pytest

from tests.messages import logged, refuses
from trainer.config.schema import DataConfig
from trainer.data.corpus import held_out_shards, open_corpus
from trainer.data.prepare import prepare
from trainer.data.shards import ShardWriter
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import DataError


@pytest.fixture
def corpus(tmp_path):
    """Prepares a corpus of bytes under a name, a few shards of it, and gives its folder."""

    def write(name):
        (tmp_path / "text.txt").write_text("All the world's a stage, and all the men and women merely players. " * 40)
        (tmp_path / "held.txt").write_text("They have their exits and their entrances. " * 40)
        folder = tmp_path / name
        prepare(
            [str(tmp_path / "text.txt")],
            folder,
            "bytes",
            validation_sources=[str(tmp_path / "held.txt")],
            tokens_per_shard=1000,
        )
        return folder

    return write


def names(dataset):
    return [shard.path.name for shard in dataset.shards]


@pytest.mark.parametrize("name", ["plain", "my_train_data", "code_val_x"])
def test_a_prepared_folder_is_split_as_its_manifest_says_whatever_its_name(corpus, name):
    folder = corpus(name)
    opened = open_corpus(DataConfig(corpus=str(folder)), 16)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    for split, dataset in (("train", opened.train), ("validation", opened.validation)):
        assert names(dataset) == [shard["file"] for shard in shards if shard["split"] == split]
    assert len(names(opened.train)) == 3
    assert len(names(opened.validation)) == 2


@pytest.mark.parametrize(("split", "number"), [("train", 1), ("validation", 0)])
def test_a_shard_that_was_lost_or_cut_short_is_named(corpus, split, number):
    folder = corpus("mine")
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    path = folder / [shard["file"] for shard in shards if shard["split"] == split][number]
    path.write_bytes(path.read_bytes()[:-2])
    with refuses(DataError, folder, path.name, f"{path.stat().st_size:,} bytes"):
        open_corpus(DataConfig(corpus=str(folder)), 16)
    path.unlink()
    with refuses(DataError, folder, path.name, "missing"):
        open_corpus(DataConfig(corpus=str(folder)), 16)


def shard(path, num_tokens):
    path.parent.mkdir(exist_ok=True)
    with ShardWriter(path, 257) as writer:
        writer.write(np.arange(num_tokens) % 257)
    return str(path)


def test_data_that_does_not_hold_one_sequence_is_named_by_its_split(tmp_path):
    large, small = shard(tmp_path / "a.bin", 500), shard(tmp_path / "b.bin", 10)
    with refuses(DataError, "validation data", "b.bin"):
        open_corpus(DataConfig(train=[large], validation=[small], vocab_size=257), 16)
    with refuses(DataError, "training data", "b.bin"):
        open_corpus(DataConfig(train=[small], validation=[large], vocab_size=257), 16)


def test_a_split_that_is_named_already_is_not_named_twice(tmp_path):
    large = shard(tmp_path / "data" / "a_train.bin", 500)
    with refuses(DataError, tmp_path / "data", "validation"):
        open_corpus(DataConfig(train=[large], validation=[str(tmp_path / "data")], vocab_size=257), 16)


def test_a_shard_on_both_sides_is_told_with_its_share_by_path_and_by_content(tmp_path, caplog):
    first, second = shard(tmp_path / "a.bin", 500), shard(tmp_path / "b.bin", 300)
    (tmp_path / "copy.bin").write_bytes((tmp_path / "a.bin").read_bytes())
    (tmp_path / "linked.bin").symlink_to(first)
    for held_out in (first, str(tmp_path / "copy.bin"), str(tmp_path / "linked.bin")):
        caplog.clear()
        open_corpus(DataConfig(train=[first], validation=[held_out, second], vocab_size=257), 16)
        logged(caplog, "1 of 2", "500 of 800", "62%", held_out)
    caplog.clear()
    other = tmp_path / "other.bin"
    with ShardWriter(other, 257) as writer:
        writer.write(np.arange(500) % 7)
    open_corpus(DataConfig(train=[first], validation=[str(other)], vocab_size=257), 16)
    assert not caplog.text


def test_a_shard_that_cannot_be_read_is_left_out_where_the_recipe_says_so(tmp_path, caplog):
    shard(tmp_path / "data" / "a.bin", 500)
    (tmp_path / "data" / "b.bin").symlink_to(tmp_path / "gone")
    data = {"train": [str(tmp_path / "data")], "vocab_size": 257}
    with refuses(DataError, "b.bin"):
        open_corpus(DataConfig(**data), 16)
    assert names(open_corpus(DataConfig(**data, skip_unreadable=True), 16).train) == ["a.bin"]
    logged(caplog, "b.bin")


def test_held_out_shards_are_those_of_the_manifest_or_of_their_names_or_all(corpus, tmp_path):
    folder = corpus("mine")
    held = [path.name for path in held_out_shards("mine", tmp_path, None)]
    assert held == ["mine_val_000000.bin", "mine_val_000001.bin"]
    with refuses(DataError, folder, "tokenizer"):
        held_out_shards("mine", tmp_path, "0" * 64)
    (folder / "manifest.json").unlink()
    assert [path.name for path in held_out_shards(str(folder), tmp_path, None)] == held
    for name in held:
        (folder / name).unlink()
    assert len(held_out_shards(str(folder), tmp_path, None)) == 3
    bytes_of = load_tokenizer("bytes").sha256
    assert held_out_shards("shakespeare", tmp_path, bytes_of)[0].parent.name == "shakespeare-bytes"


def test_held_out_text_that_is_shorter_than_a_sequence_is_refused_with_how_to_hold_out_more(tmp_path):
    (tmp_path / "text.txt").write_text("All the world's a stage. " * 200)
    prepare([str(tmp_path / "text.txt")], tmp_path / "mine", "bytes")
    with refuses(DataError, "validation data", "--validation-fraction"):
        open_corpus(DataConfig(corpus=str(tmp_path / "mine")), 64)
    assert open_corpus(DataConfig(corpus=str(tmp_path / "mine")), 16).validation.num_sequences == 1


def test_the_same_tokens_stored_as_another_type_or_layout_are_on_both_sides_too(tmp_path, caplog):
    first = shard(tmp_path / "a.bin", 100_000)
    np.save(tmp_path / "wide.npy", (np.arange(100_000) % 257).astype(">i4"))
    open_corpus(DataConfig(train=[first], validation=[str(tmp_path / "wide.npy")], vocab_size=257), 16)
    logged(caplog, "100%", "wide.npy")


def test_what_a_manifest_says_of_repeats_counts_however_its_folder_is_named(tmp_path, caplog):
    (tmp_path / "text.txt").write_text("All the world's a stage. " * 200)
    folder = tmp_path / "mine"
    prepare([str(tmp_path / "text.txt")], folder, "bytes", validation_sources=[str(tmp_path / "text.txt")])
    caplog.clear()
    open_corpus(DataConfig(train=[str(folder)], validation=[str(folder)], tokenizer="bytes"), 16)
    logged(caplog, "1 of 1", folder)


def test_a_manifest_that_is_not_ours_says_nothing(tmp_path, caplog):
    large = shard(tmp_path / "a_train.bin", 500), shard(tmp_path / "a_val.bin", 300)
    (tmp_path / "manifest.json").write_text('{"files": []}')
    open_corpus(DataConfig(train=[large[0]], validation=[large[1]], vocab_size=257), 16)
    assert not caplog.text


def test_held_out_shards_of_a_folder_of_training_data_that_nobody_names_are_told(tmp_path, caplog):
    shard(tmp_path / "data" / "a_train.bin", 500), shard(tmp_path / "data" / "a_val.bin", 300)
    folder = str(tmp_path / "data")
    open_corpus(DataConfig(train=[folder], validation=[folder], vocab_size=257), 17)
    assert "a_val.bin" not in caplog.text
    open_corpus(DataConfig(train=[folder], vocab_size=257), 17)
    logged(caplog, "a_val.bin", "data.validation")


def test_a_prepared_corpus_that_holds_nothing_out_has_no_held_out_shards_of_its_own(tmp_path):
    (tmp_path / "text.txt").write_text("All the world's a stage. " * 200)
    prepare([str(tmp_path / "text.txt")], tmp_path / "mine", "bytes", validation_fraction=0.0)
    assert len(held_out_shards("mine", tmp_path, None)) == 1
    with refuses(DataError, "held out"):
        held_out_shards("mine", tmp_path, None, whole_if_none=False)
