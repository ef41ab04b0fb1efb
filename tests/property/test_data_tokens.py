"""What must hold of tokenizers and shards for any text and any tokens."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import tokenizer as module
from trainer.data.shards import ShardWriter, TokenDataset, open_shard
from trainer.data.tokenizer import load_tokenizer

TEXT = st.text(max_size=200)
WHITESPACE = st.text(alphabet=" \n\t\r\u00a0\u2003\x1c\x85ab1.'s", max_size=200)


@pytest.mark.parametrize("name", ["gpt2", "shakespeare", "bytes"])
@given(text=st.one_of(TEXT, WHITESPACE))
@settings(deadline=None)
def test_text_comes_back_whole_and_its_bytes_are_counted(name, text):
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.num_bytes(np.array(ids, dtype=np.int64)) == len(text.encode())
    assert tokenizer.eot_id not in ids


@given(st.lists(st.one_of(TEXT, WHITESPACE, st.just("\n"), st.just("a\nb"))).map("".join), st.integers(1, 9))
@settings(deadline=None)
def test_encoding_in_portions_gives_the_ids_of_the_whole(text, portion):
    tokenizer = load_tokenizer("gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PORTION_CHARACTERS", portion)
        in_portions = tokenizer.encode(text)
    assert in_portions == tokenizer.encode(text)


@given(
    st.lists(st.integers(0, 300), max_size=6),
    st.integers(1, 40),
    st.sampled_from([257, 65536, 65537, 200_000]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=40)
def test_sequences_are_the_windows_of_the_tokens_that_were_written(sizes, sequence_length, vocab_size, seed):
    random = np.random.default_rng(seed)
    written = [random.integers(0, vocab_size, size) for size in sizes]
    windows = [
        tokens[start : start + sequence_length + 1]
        for tokens in written
        for start in range(0, len(tokens) - sequence_length, sequence_length)
    ]
    with TemporaryDirectory() as folder:
        paths = []
        for i, tokens in enumerate(written):
            paths.append(Path(folder) / f"{i}.bin")
            with ShardWriter(paths[-1], vocab_size) as shard:
                for part in np.array_split(tokens, 3):
                    shard.write(part)
            assert open_shard(paths[-1]).tokens().tolist() == tokens.tolist()
        if windows:
            dataset = TokenDataset(paths, sequence_length, vocab_size)
            assert dataset.num_sequences == len(windows)
            assert np.array_equal(dataset.sequences(np.arange(len(windows))), np.stack(windows))
            assert dataset.fingerprint == TokenDataset(paths, sequence_length, vocab_size).fingerprint
