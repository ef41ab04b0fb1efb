"""Every peer's file of tokens is read, and what is not whole or not told is refused."""

import numpy as np
import pytest

from tests.messages import refuses
from trainer.data.shards import TokenDataset, open_shard
from trainer.errors import DataError

HEADER = 256


def headed(*numbers: int) -> bytes:
    words = np.zeros(HEADER, dtype="<i4")
    words[: len(numbers)] = numbers
    return words.tobytes()


def test_every_layout_reads_to_the_same_tokens(layout, tokens, tmp_path):
    path, dtype = layout(tmp_path / "corpus", tokens)
    shard = open_shard(path, dtype)
    assert shard.num_tokens == len(tokens)
    assert np.array_equal(shard.tokens().astype(np.int64), tokens)
    dataset = TokenDataset([path], 100, 50257, dtype)
    assert dataset.num_sequences == 40
    assert np.array_equal(dataset.sequences(np.array([39]))[0], tokens[3900:4001])


def test_every_layout_that_lost_its_end_is_refused(layout, tokens, tmp_path):
    path, dtype = layout(tmp_path / "corpus", tokens)
    path.write_bytes(path.read_bytes()[:-1])
    with refuses(DataError, path, "truncated"):
        open_shard(path, dtype)


def test_a_truncated_shard_names_both_sizes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(headed(20240520, 1, 1000) + bytes(1000))
    with refuses(DataError, "1,000 tokens", "3,024 bytes", "2,024"):
        open_shard(path)
    path.write_bytes(headed(20240520, 1, 10) + bytes(1000))
    with refuses(DataError, path, "10 tokens", "1,044 bytes", "2,024"):
        open_shard(path)


@pytest.mark.parametrize(
    ("name", "content", "dtype", "words"),
    [
        ("a.bin", headed(20240522, 1, 10), None, ["llm.c"]),
        ("a.bin", headed(20240520, 2, 0), None, ["version 2", "version 1"]),
        ("a.bin", headed(278895051, 1, 0, 3), None, ["3 bytes"]),
        ("a.bin", headed(20240520, 1, 0), "uint32", ["<u2", "data.dtype", "uint32"]),
        ("a.bin", bytes(10), None, ["data.dtype", "uint16"]),
        ("a.bin", bytes(10), "uint8", ["data.dtype", "'uint8'"]),
        ("a.bin", bytes(10), "uint32", ["4 bytes"]),
        ("a.bin", b"", None, ["empty"]),
        ("a.npy", b"\x93NUMPY\x01\x00\x05\x00junk", None, ["damaged", ".npy"]),
        ("a.bin", b"PAR1" + bytes(2000), "uint16", ["parquet", "tokens"]),
        ("a.bin", b"\x1f\x8b" + bytes(2000), None, ["gzip-compressed"]),
        ("a.jsonl", b'{"text": "x"}', None, ["file of tokens"]),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused(tmp_path, name, content, dtype, words):
    (tmp_path / name).write_bytes(content)
    with refuses(DataError, *words):
        open_shard(tmp_path / name, dtype)


def test_a_missing_shard_says_how_to_make_some(tmp_path):
    with refuses(DataError, "none.bin", "launch.sh prepare"):
        open_shard(tmp_path / "none.bin")


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint16), np.zeros(4, np.float32), np.array([{}], dtype=object)])
def test_an_array_that_is_no_list_of_integers_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with refuses(DataError, "a.npy", "integers", "one dimension"):
        open_shard(tmp_path / "a.npy")


def test_a_sidecar_that_says_another_type_is_not_overruled_silently(tmp_path):
    (tmp_path / "a.ds").write_bytes(bytes(8))
    (tmp_path / "a.ds.metadata").write_text("gpt2|2\n4\n4 T")
    with refuses(DataError, "a.ds", "uint16", "data.dtype", "uint32"):
        open_shard(tmp_path / "a.ds", "uint32")


@pytest.mark.parametrize(("name", "beside"), [("a.bin", "a.idx"), ("a.ds", "a.ds.metadata")])
def test_a_sidecar_that_is_there_and_cannot_be_read_is_told(tmp_path, name, beside):
    (tmp_path / name).write_bytes(bytes(8))
    (tmp_path / beside).symlink_to(tmp_path / "gone")
    with refuses(DataError, beside):
        open_shard(tmp_path / name, "uint16")
