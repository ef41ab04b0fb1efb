"""Tokenizers give the ids they are known for, lose nothing, and are told apart."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.corpora import train_bpe
from tests.messages import refuses
from trainer.data import tokenizer as module
from trainer.data.assets import embedded_documents
from trainer.data.bpe import tiktoken_lines
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import DataError
from trainer.model.tokenizer_files import byte_letters

SENTENCE = "Hello, world! It's 2024.\n\n  naive cafe <|endoftext|>"
GOLDEN = {
    "gpt2": [15496, 11, 995, 0, 632, 338, 48609, 13, 628, 220, 24354, 26725, 1279, 91, 437, 1659, 5239, 91, 29],
    "shakespeare": [
        39,
        404,
        78,
        11,
        910,
        0,
        2541,
        326,
        220,
        17,
        15,
        17,
        19,
        13,
        198,
        703,
        278,
        64,
        476,
        279,
        4012,
        220,
        27,
        91,
        430,
        78,
        1004,
        68,
        1347,
        91,
        29,
    ],
    "bytes": list(SENTENCE.encode()),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_known_sentence_gives_known_ids(name):
    tokenizer = load_tokenizer(name)
    assert tokenizer.encode(SENTENCE) == GOLDEN[name]
    assert tokenizer.decode(GOLDEN[name]) == SENTENCE


@pytest.mark.parametrize(("name", "size"), [("gpt2", 50257), ("shakespeare", 4096), ("bytes", 257)])
def test_the_special_token_is_the_last_id(name, size):
    tokenizer = load_tokenizer(name)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot_id) == (name, size, size - 1)
    assert len(tokenizer.ranks) == size - 1
    assert {bytes([byte]) for byte in range(256)} <= tokenizer.ranks.keys()
    assert tokenizer.decode([tokenizer.eot_id]) == "<|endoftext|>"


@pytest.mark.parametrize("name", GOLDEN)
def test_text_cannot_spell_the_special_token(name):
    tokenizer = load_tokenizer(name)
    assert tokenizer.eot_id not in tokenizer.encode("a<|endoftext|>b")


def test_fingerprints_tell_vocabularies_apart_and_stay():
    assert {name: load_tokenizer(name).sha256[:16] for name in GOLDEN} == {
        "gpt2": "1d5e120a182a193b",
        "shakespeare": "7e09ab70ff6df740",
        "bytes": "3476ed3c60a0798b",
    }


def test_a_text_longer_than_a_portion_gives_the_same_ids(monkeypatch):
    text = "".join(embedded_documents("shakespeare", "train")[:3]) + "\n\n \n" * 50 + "x" * 900 + "\n"
    whole = load_tokenizer("gpt2").encode(text)
    monkeypatch.setattr(module, "PORTION_CHARACTERS", 100)
    assert load_tokenizer("gpt2").encode(text) == whole


def test_bytes_of_ids_are_counted_without_special_and_ignored_ones():
    tokenizer = load_tokenizer("gpt2")
    text = "naive caf\u00e9 \U0001f600"
    ids = np.array([tokenizer.eot_id, *tokenizer.encode(text), -100])
    assert tokenizer.num_bytes(ids) == len(text.encode())
    assert tokenizer.num_bytes(ids[:-1].astype(np.uint16).reshape(1, -1)) == len(text.encode())
    assert tokenizer.decode_bytes(ids[1:-1]) == text.encode()


def test_ids_of_a_padded_model_do_not_stop_decoding():
    assert load_tokenizer("gpt2").decode([15496, 50300]) == "Hello\ufffd"


def test_lone_surrogates_become_the_replacement_character():
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_a_tokenizer_travels_to_another_process():
    tokenizer = load_tokenizer("shakespeare")
    tokenizer.encode("x")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert again.encode(SENTENCE) == GOLDEN["shakespeare"]


def test_a_file_is_loaded_by_its_path_and_read_again_when_it_changed(tmp_path):
    path = tmp_path / "own.tiktoken"
    path.write_bytes(tiktoken_lines(train_bpe(["to be or not to be"], 260)))
    own = load_tokenizer(str(path))
    assert (own.name, own.vocab_size, own.eot_id) == ("own", 260, 259)
    assert own.decode(own.encode("not to be")) == "not to be"
    assert load_tokenizer(str(path)) is own
    path.write_bytes(tiktoken_lines(train_bpe(["to be or not to be"], 258)))
    assert load_tokenizer(str(path)).vocab_size == 258


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"IQ== 0\nno base64! 1\n", ["line 2"]),
        (b"IQ== 0\nIQ== 1\n", ["line 2", "twice"]),
        (b"IQ== -1\n", ["line 1", "negative"]),
        (b"IQ== 0\nIg== 0\n", ["same rank"]),
        (b"IQ== 0\n", ["255 of the 256", "bytes", "missing"]),
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path, content, words):
    path = tmp_path / "own.tiktoken"
    path.write_bytes(content)
    with refuses(DataError, path, *words):
        load_tokenizer(str(path))


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with refuses(DataError, "'gtp2'", "'gpt2'"):
        load_tokenizer("gtp2")
    with refuses(DataError, tmp_path / "none.tiktoken"):
        load_tokenizer(str(tmp_path / "none.tiktoken"))
    with refuses(DataError, "~nosuch/mine.tiktoken"):
        load_tokenizer("~nosuch/mine.tiktoken")


def test_training_keeps_bytes_that_the_text_does_not_contain():
    ranks = train_bpe(["aaaa"], 4096)
    assert len(ranks) < 4095
    assert all(bytes([byte]) in ranks for byte in range(256))
    assert len(set(byte_letters())) == len(byte_letters()) == 256


def test_tokenizing_and_shards_need_neither_torch_nor_datasets_nor_pyarrow():
    code = (
        "import sys, trainer.data.prepare, trainer.data.shards, trainer.data.sources as s; list(s.documents(s.open_source("
        "'embedded:shakespeare'))); print(sorted({'torch', 'datasets', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
