"""Every peer's file of tokens is read, and what is not whole or not told is refused."""

import numpy as np
import pytest

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
    with pytest.raises(DataError, match="truncated"):
        open_shard(path, dtype)


def test_a_truncated_shard_names_both_sizes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(headed(20240520, 1, 1000) + bytes(1000))
    with pytest.raises(DataError, match="counts 1,000 tokens, which makes 3,024 bytes, but the file has 2,024"):
        open_shard(path)
    path.write_bytes(headed(20240520, 1, 10) + bytes(1000))
    with pytest.raises(DataError, match="not what was written"):
        open_shard(path)


@pytest.mark.parametrize(
    ("name", "content", "dtype", "message"),
    [
        ("a.bin", headed(20240522, 1, 10), None, "evaluation set of llm.c"),
        ("a.bin", headed(20240520, 2, 0), None, "header of version 2, and version 1"),
        ("a.bin", headed(278895051, 1, 0, 3), None, "a token takes 3 bytes"),
        ("a.bin", headed(20240520, 1, 0), "uint32", "holds <u2, but data.dtype is uint32"),
        ("a.bin", bytes(10), None, "Set data.dtype to uint16"),
        ("a.bin", bytes(10), "uint8", "data.dtype 'uint8' is not known"),
        ("a.bin", bytes(10), "uint32", "no multiple of the 4 bytes"),
        ("a.bin", b"", None, "is empty"),
        ("a.npy", b"\x93NUMPY\x01\x00\x05\x00junk", None, "damaged .npy header"),
        ("a.bin", b"PAR1" + bytes(2000), "uint16", "is parquet data, not tokens"),
        ("a.bin", b"\x1f\x8b" + bytes(2000), None, "is gzip-compressed data"),
        ("a.jsonl", b'{"text": "x"}', None, "is not a file of tokens"),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused(tmp_path, name, content, dtype, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_shard(tmp_path / name, dtype)


def test_a_missing_shard_says_how_to_make_some(tmp_path):
    with pytest.raises(DataError, match="No such file.*launch.sh prepare"):
        open_shard(tmp_path / "none.bin")


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint16), np.zeros(4, np.float32), np.array([{}], dtype=object)])
def test_an_array_that_is_no_list_of_integers_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="integers in one dimension were expected"):
        open_shard(tmp_path / "a.npy")


def test_a_sidecar_that_says_another_type_is_not_overruled_silently(tmp_path):
    (tmp_path / "a.ds").write_bytes(bytes(8))
    (tmp_path / "a.ds.metadata").write_text("gpt2|2\n4\n4 T")
    with pytest.raises(DataError, match="beside it says uint16, but data.dtype is uint32"):
        open_shard(tmp_path / "a.ds", "uint32")


@pytest.mark.parametrize(("name", "beside"), [("a.bin", "a.idx"), ("a.ds", "a.ds.metadata")])
def test_a_sidecar_that_is_there_and_cannot_be_read_is_told(tmp_path, name, beside):
    (tmp_path / name).write_bytes(bytes(8))
    (tmp_path / beside).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=beside):
        open_shard(tmp_path / name, "uint16")
