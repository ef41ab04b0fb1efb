"""Tokenizers of the Hugging Face world are opened with their roles, kept byte by byte, and refused with the reason."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import small_tokenizers
from tests.corpora import verify_corpus
from tests.messages import form_faults, logged, refuses, says
from trainer.config.schema import DataConfig
from trainer.data import bridge, bridge_proof, sentence_piece
from trainer.data.corpus import open_corpus
from trainer.data.manifest import read_manifest
from trainer.data.prepare import prepare
from trainer.data.shards import open_shard
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import DataError

TEXTS = [f"To be, or not to be: number {number}, <|im_end|> </s>  it's caf\u00e9.\n" for number in range(40)]


@pytest.fixture(autouse=True)
def few_characters(monkeypatch, tmp_path):
    """A proof of a fraction of the characters, remembered in a folder of the test."""
    monkeypatch.setattr(bridge_proof, "characters", lambda: [*map(chr, range(0x20, 0x250))])
    monkeypatch.setattr(bridge.files, "project_folder", lambda: tmp_path)


@pytest.fixture
def chat(tmp_path) -> Path:
    """A byte-level tokenizer whose eos ends a turn of a chat."""
    return small_tokenizers.write("byte-level-split-nfc", tmp_path / "chat")


@pytest.fixture
def llama(tmp_path) -> Path:
    return small_tokenizers.write("byte-fallback", tmp_path / "llama")


def test_special_tokens_are_known_by_what_they_are_for(chat, llama, tmp_path, caplog):
    caplog.set_level("INFO")
    opened = load_tokenizer(str(chat))
    specials = {opened.decode([id]): id for id in range(opened.vocab_size - 5, opened.vocab_size)}
    assert (opened.eot_id, opened.eos_id, opened.pad_id) == (
        specials["<|endoftext|>"],
        specials["<|im_end|>"],
        specials["<|endoftext|>"],
    )
    assert (opened.bos_id, opened.begin_ids, opened.start_id) == (None, (opened.eot_id,), opened.eot_id)
    logged(caplog, "<|endoftext|>", "<|im_end|>")
    assert load_tokenizer(str(chat), separator="<|im_end|>").begin_ids == (opened.eos_id,)
    wants_bos = load_tokenizer(str(llama / "tokenizer.json"))
    assert (wants_bos.bos_id, wants_bos.eot_id, wants_bos.begin_ids, wants_bos.start_id) == (1, 2, (2, 1), 1)
    assert load_tokenizer(str(llama), begins_with_bos=False).begin_ids == (2,)
    pieces = load_tokenizer(str(small_tokenizers.write("word-piece", tmp_path / "bert")))
    assert pieces.decode([pieces.eot_id]) == "[SEP]"


@pytest.mark.parametrize("kind", ["byte-level-split", "byte-fallback"])
def test_text_comes_back_and_its_bytes_are_counted_without_specials(kind, tmp_path):
    opened = load_tokenizer(str(small_tokenizers.write(kind, tmp_path / kind)))
    text = "na\u00efve  caf\u00e9 \U0001f600\n<|endoftext|></s>"
    ids = np.array([*opened.begin_ids, *opened.encode(text), -100])
    before = " " if kind == "byte-fallback" else ""  # which its family puts before a text
    assert opened.decode(ids[len(opened.begin_ids) : -1]) == before + text
    assert opened.num_bytes(ids) == len((before + text).encode())
    assert opened.eot_id not in opened.encode(text)
    assert opened.decode([opened.vocab_size + 7]) == "\ufffd"


def test_it_travels_to_another_process_and_files_that_changed_are_read_again(chat):
    opened = load_tokenizer(str(chat), separator="<|im_end|>")
    again = pickle.loads(pickle.dumps(opened))
    assert again == opened and again.eot_id == opened.eos_id
    assert load_tokenizer(str(chat), separator="<|im_end|>") is opened
    written = json.loads((chat / "tokenizer.json").read_text())
    written["normalizer"] = None
    (chat / "tokenizer.json").write_text(json.dumps(written))
    assert load_tokenizer(str(chat)).sha256 != opened.sha256


def test_the_fingerprint_is_that_of_the_ids_alone(chat):
    before = load_tokenizer(str(chat)).sha256
    config = json.loads((chat / "tokenizer_config.json").read_text())
    (chat / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": "another", "eos_token": "<|endoftext|>"})
    )
    written = json.loads((chat / "tokenizer.json").read_text())
    written["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] ^= True
    (chat / "tokenizer.json").write_text(json.dumps(written))
    assert load_tokenizer(str(chat)).sha256 == before
    assert load_tokenizer(str(chat), separator="<|im_end|>").sha256 == before


def test_the_proof_is_made_once_and_what_speaks_against_the_bridge_is_said(chat, llama, tmp_path, monkeypatch):
    opened = load_tokenizer(str(chat))
    says(opened.way, "tiktoken")
    says(load_tokenizer(str(llama)).way, "tokenizers", "byte fallback")
    monkeypatch.setattr(bridge_proof, "unreachable", None)
    monkeypatch.setattr(bridge, "unreachable", None)
    del opened.__dict__["bridge"]
    says(opened.way, "tiktoken")
    written = json.loads((chat / "tokenizer.json").read_text())
    monkeypatch.undo()
    monkeypatch.setattr(bridge_proof, "characters", list)
    monkeypatch.setattr(bridge.files, "project_folder", lambda: tmp_path / "elsewhere")
    for what, change in {
        "order of ids": lambda d: d["model"]["merges"].insert(0, d["model"]["merges"].pop()),
        "looks around": lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\b\w+|\s+|[^\w\s]"),
        "NFKC": lambda d: d.update(normalizer={"type": "NFKC"}),
        "one pattern": lambda d: d["pre_tokenizer"]["pretokenizers"].insert(
            0, {"type": "Digits", "individual_digits": True}
        ),
    }.items():
        other = tmp_path / what.replace(" ", "-")
        shutil.copytree(chat, other)
        changed = json.loads(json.dumps(written))
        change(changed)
        (other / "tokenizer.json").write_text(json.dumps(changed))
        says(load_tokenizer(str(other)).way, "tokenizers", what)


def test_a_text_that_tiktoken_does_not_come_to_the_end_of_has_the_ids_of_the_original(chat):
    opened = load_tokenizer(str(chat))
    text = "a" + " " * 1_200_000 + "b"
    assert opened.encode_batch(["before", text])[1].tolist() == opened.encode(text)


def test_a_corpus_carries_the_original_files_and_how_documents_begin(llama, tmp_path):
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    opened, out = load_tokenizer(str(llama)), tmp_path / "out"
    prepare([str(source)], out, str(llama), validation_fraction=0, num_workers=2)
    manifest = verify_corpus(out)
    assert open_shard(out / manifest["shards"][0]["file"]).tokens().tolist() == [
        id for text in TEXTS for id in [*opened.begin_ids, *opened.encode(text)]
    ]
    assert manifest["begin_ids"] == [2, 1] and manifest["tokenizer_files"] == dict(opened.files)
    for name in opened.files:
        assert (out / "tokenizer" / name).read_bytes() == (llama / name).read_bytes()
    assert prepare([str(source)], out, str(llama), validation_fraction=0).reused
    with refuses(DataError, "begin_ids", out):
        prepare([str(source)], out, load_tokenizer(str(llama), begins_with_bos=False), validation_fraction=0)
    shutil.rmtree(llama)
    corpus = open_corpus(DataConfig(corpus=str(out)), 32)
    assert (corpus.tokenizer.sha256, corpus.tokenizer.begin_ids) == (opened.sha256, opened.begin_ids)
    small_tokenizers.write("unigram", llama)
    with refuses(DataError, llama, out, "--tokenizer"):
        open_corpus(DataConfig(corpus=str(out), tokenizer=str(llama)), 32)


def test_large_vocabularies_are_stored_in_32_bits(chat, tmp_path):
    written = json.loads((chat / "tokenizer.json").read_text())
    written["model"]["vocab"] |= {
        f"\u0120filler{number}": number for number in range(len(written["model"]["vocab"]) + 5, 66_000)
    }
    (chat / "tokenizer.json").write_text(json.dumps(written))
    source = tmp_path / "source.txt"
    source.write_text("Some text.\n" * 50)
    prepare([str(source)], tmp_path / "out", str(chat), validation_fraction=0)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["dtype"], manifest["vocab_size"]) == ("uint32", 66_000)
    assert open_shard(tmp_path / "out" / manifest["shards"][0]["file"]).tokens().dtype == np.uint32


def test_lone_surrogates_are_counted(chat, tmp_path, caplog):
    source = tmp_path / "source.jsonl"
    source.write_text('{"text": "a\\ud800b \\ud83d\\ude00 c\\udc00"}\n{"text": "sound"}\n')
    prepare([str(source)], tmp_path / "out", str(chat), validation_fraction=0)
    assert read_manifest(tmp_path / "out")["lone_surrogates"] == 2
    logged(caplog, "2 lone surrogates", "U+FFFD")


def test_a_sentence_piece_model_has_its_own_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    lines = [line for text in small_tokenizers.texts() for line in text.splitlines() if line]
    path = tmp_path / "mine.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(path.with_suffix("")),
        vocab_size=600,
        byte_fallback=True,
        minloglevel=2,
    )
    opened, original = load_tokenizer(str(path)), sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert [ids.tolist() for ids in opened.encode_batch(TEXTS)] == original.encode(TEXTS)
    assert opened.decode(opened.encode("it's caf\u00e9")) == " it's caf\u00e9"
    assert pickle.loads(pickle.dumps(opened)) == opened
    source = tmp_path / "source.txt"
    source.write_text("Some text.\n" * 50)
    prepare([str(source)], tmp_path / "out", load_tokenizer(str(path), begins_with_bos=False), validation_fraction=0)
    again = open_corpus(DataConfig(corpus=str(tmp_path / "out")), 32).tokenizer
    assert (again.sha256, again.begin_ids) == (opened.sha256, (original.eos_id(),))


# Refusals


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.safetensors").touch()


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _configure(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSED = {
    "a folder without a tokenizer": (_empty, ["tokenizer.json", "model.safetensors"]),
    "half a download": (
        lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text()[:5000]),
        ["tokenizer.json", "again"],
    ),
    "no JSON": (lambda f: (f / "tokenizer.json").write_text("<html>"), ["again"]),
    "no vocabulary": (
        lambda f: _edit(f, model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]),
        ["vocabulary"],
    ),
    "no model": (lambda f: _edit(f, model=None), ["again"]),
    "a damaged config": (lambda f: (f / "tokenizer_config.json").write_text("{"), ["again"]),
    "code of its own": (
        lambda f: _configure(f, tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}),
        ["executed", "save_pretrained"],
    ),
    "nothing that ends a text": (
        lambda f: (_configure(f, eos_token=None, pad_token=None), _edit(f, added_tokens=[])),
        ["--separator"],
    ),
    "damaged notes": (lambda f: (f / "documents.json").write_text("[]"), ["documents.json", "again"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_a_tokenizer_is_refused_in_a_paragraph(what, chat):
    spoil, words = REFUSED[what]
    spoil(chat)
    with refuses(DataError, chat, *words) as caught:
        load_tokenizer(str(chat))
    assert not form_faults(str(caught.value)), caught.value
    assert caught.value.exit_code == 2


def test_names_and_wishes_that_cannot_be_are_refused_in_a_paragraph(chat, tmp_path, monkeypatch):
    with refuses(DataError, "'<|im_ends|>'", "'<|im_end|>'"):
        load_tokenizer(str(chat), separator="<|im_ends|>")
    with refuses(DataError, "'the'", chat):
        load_tokenizer(str(chat), separator="the")  # an ordinary token, which a text may spell
    with refuses(DataError, chat, "bos", "--bos"):
        load_tokenizer(str(chat), begins_with_bos=True)
    with refuses(DataError, "gpt2", "<|endoftext|>", "leave"):
        load_tokenizer("gpt2", separator="</s>")
    with refuses(DataError, "'no/such/folder'", ".tiktoken", "hf:NAME"):
        load_tokenizer("no/such/folder")
    other = tmp_path / "vocabulary.json"
    other.write_text("{}")
    with refuses(DataError, other, "tokenizer.json"):
        load_tokenizer(str(other))
    (tmp_path / "spiece.model").write_bytes(b"x")
    monkeypatch.setattr(sentence_piece, "find_spec", lambda name: None)
    with refuses(DataError, tmp_path / "spiece.model", "sentencepiece", "pip install"):
        load_tokenizer(str(tmp_path / "spiece.model"))


def test_opening_the_usual_tokenizers_needs_no_transformers():
    code = "import sys; from trainer.data.tokenizer import load_tokenizer; load_tokenizer('gpt2'); print({'transformers', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
