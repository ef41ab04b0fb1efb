"""A tokenizer is trained from text alone, in whatever order it is read, opens in transformers, and is shown beside others."""

import hashlib
import json

import pytest

from tests.commands import paragraph, trainer
from tests.messages import logged, refuses, says
from trainer.data import bridge, bridge_proof, describe_tokenizer
from trainer.data.assets import embedded_documents
from trainer.data.describe_tokenizer import describe, side_by_side
from trainer.data.text_sample import PORTION_CHARACTERS, sample
from trainer.data.tokenizer import load_tokenizer
from trainer.data.train_tokenizer import train_tokenizer
from trainer.errors import DataError

TEXT = [f"It costs {number} at the caf\u00e9 {number % 7}.\n" for number in range(300)]


@pytest.fixture(autouse=True)
def few_characters(monkeypatch, tmp_path):
    """A proof of a fraction of the characters, remembered in a folder of the test."""
    monkeypatch.setattr(bridge_proof, "characters", lambda: [*map(chr, range(0x20, 0x250))])
    monkeypatch.setattr(bridge.files, "project_folder", lambda: tmp_path)


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """A tokenizer trained on a part of the embedded plays, in two files."""
    folder = tmp_path_factory.mktemp("plays")
    scenes = embedded_documents("shakespeare", "train")[:8]
    for name, part in (("a", scenes[:4]), ("b", scenes[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": scene}) + "\n" for scene in part))
    train_tokenizer([str(folder / "a.jsonl"), str(folder / "b.jsonl")], folder / "made", 2000, specials=["<|user|>"])
    return folder


def test_the_text_alone_decides(plays):
    made = (plays / "made" / "tokenizer.json").read_bytes()
    train_tokenizer([str(plays / "b.jsonl"), str(plays / "a.jsonl")], plays / "again", 2000, specials=["<|user|>"])
    assert (plays / "again" / "tokenizer.json").read_bytes() == made
    merges = json.dumps(json.loads(made)["model"]["merges"])
    # Changes with the version of tokenizers alone, and then every tokenizer of before could not be made again.
    assert hashlib.sha256(merges.encode()).hexdigest()[:16] == "18c5ff2cad44f1ee"


def test_it_opens_in_transformers_with_the_same_ids(plays):
    from transformers import AutoTokenizer

    opened, there = load_tokenizer(str(plays / "made")), AutoTokenizer.from_pretrained(str(plays / "made"))
    ends = opened.specials["<|endoftext|>"], opened.specials["<|user|>"]
    assert (opened.vocab_size, ends) == (2000, (1998, 1999))
    assert {opened.eot_id, opened.bos_id, opened.eos_id, opened.pad_id, there.eos_token_id} == {1998}
    for text in (*TEXT[:3], "na\u00efve \u4f60\u597d \U0001f600\r\n\x00 12345", "".join(TEXT)):
        ids = opened.encode(text)
        assert ids == there(text, add_special_tokens=False)["input_ids"]
        assert opened.decode(ids) == there.decode(ids) == text
    assert opened.encode("<|user|>") != [1999]
    assert not isinstance(opened.bridge, str), "it goes through tiktoken"


def test_a_sample_is_the_same_in_any_order_and_fits():
    whole = sample(TEXT, 1 << 20)
    assert whole.is_whole and sorted(whole.portions) == sorted(text.encode() for text in TEXT)
    taken = sample(TEXT, 2000)
    assert 1500 < taken.num_bytes == sum(map(len, taken.portions)) <= 2000
    assert taken.total_bytes == whole.num_bytes and set(taken.portions) < set(whole.portions)
    assert sample(reversed(TEXT), 2000) == taken
    often = ["often\n"] * 1000 + TEXT
    assert sample(often, 3000) == sample(reversed(often), 3000)
    long = "".join(TEXT) * 40
    parts = sample([long], 10 * len(long)).portions
    assert len(parts) > len(long) // PORTION_CHARACTERS and all(part.endswith(b"\n") for part in parts)
    assert sample(["a\ud800"], 10).portions == ("a\ufffd".encode(),)


def test_a_sample_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "text.txt").write_text("".join(TEXT))
    (tmp_path / "more.txt").write_text("the words of another text\n" * 400)
    sources = [str(tmp_path / "text.txt"), str(tmp_path / "more.txt")]
    made = train_tokenizer(sources, tmp_path / "made", 270, max_sample_bytes=12_000)
    assert made.sample_bytes < 12_000 < made.text_bytes
    logged(caplog, "sample", "hash")


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (["--vocab-size", "257"], ["--vocab-size", "257", "256"]),
        (["--vocab-size", "5000"], ["--vocab-size", "5,000", "more text"]),
        (["--vocab-size", "300", "--special", "<|endoftext|>"], ["--special", "<|endoftext|>", "once"]),
        (["--vocab-size", "300", "--special", "a"], ["--special", "'a'", "<|a|>"]),
        (["--vocab-size", "300", "--sample-bytes", "0"], ["--sample-bytes", "0", "1"]),
        (["--vocab-size", "300", "--text-key", "body"], ["text.jsonl", "body", "text"]),
    ],
    ids=lambda value: value[-1],
)
def test_what_cannot_be_trained_is_refused(tmp_path, words, tokens):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))
    said = trainer("tokenizer", "train", str(tmp_path / "text.jsonl"), "--out", str(tmp_path / "made"), *words)
    assert said.code == 2
    says(paragraph(said.err), *tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"], "nothing is left behind"


def test_a_folder_with_content_is_left_alone(plays):
    with refuses(DataError, plays / "made", "--out"):
        train_tokenizer([str(plays / "a.jsonl")], plays / "made", 300)


def test_several_are_shown_side_by_side(plays, tmp_path):
    (tmp_path / "text.txt").write_text("".join(TEXT))
    text, made = str(tmp_path / "text.txt"), str(plays / "made")
    said = trainer("tokenizer", "show", made, "bytes", "--text", text, "--text", "embedded:shakespeare@validation")
    assert said.code == 0
    for row in (["ids", "2,000", "257"], ["special", "tokens", "2", "1"], ["bytes", "per", "token", "1.000"]):
        assert any(all(word in line.split() for word in row) for line in said.out.splitlines()), row
    says(said.out, "<|user|> 1999", made, text)
    shown, plain = json.loads(trainer("tokenizer", "show", made, "bytes", "--text", text, "--json").out)
    num_bytes = len("".join(TEXT).encode())
    assert plain["fits"][text] == {
        "text_bytes": num_bytes,
        "num_tokens": num_bytes,
        "used_ids": len(set("".join(TEXT).encode())),
        "bytes_per_token": 1.0,
    }
    ids = load_tokenizer(made).encode("".join(TEXT))
    assert shown["fits"][text]["bytes_per_token"] == num_bytes / len(ids)
    assert shown["specials"] == {"<|endoftext|>": 1998, "<|user|>": 1999}
    assert (shown["vocab_size"], shown["separator"], shown["pad"]) == (2000, "<|endoftext|>", "<|endoftext|>")


def test_bos_before_documents_and_many_specials_are_shown(tmp_path):
    from tests import small_tokenizers

    llama = load_tokenizer(str(small_tokenizers.write("byte-fallback", tmp_path / "llama")))
    described = describe("llama", llama, {"text": TEXT})
    assert (described.bos, described.eos, described.pad, described.begins_with_bos) == ("<s>", "</s>", None, True)
    says(side_by_side([described]), "</s> <s>", "none", "byte fallback")


def test_a_text_without_text_is_refused_and_a_long_one_is_cut_short(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    (tmp_path / "empty.txt").write_text("")
    said = trainer("tokenizer", "show", "bytes", "--text", str(tmp_path / "empty.txt"))
    assert said.code == 2
    says(paragraph(said.err), tmp_path / "empty.txt", "--text")
    monkeypatch.setattr(describe_tokenizer, "MAX_TEXT_BYTES", 1000)
    texts = describe_tokenizer.read_text("embedded:shakespeare")
    assert 0 < len("".join(texts[:-1]).encode()) <= 1000 < len("".join(texts).encode())
    logged(caplog, "embedded:shakespeare", "first")
