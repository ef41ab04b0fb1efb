"""A tokenizer of Hugging Face goes the whole way: text, training, samples, tasks, texts that are written, and an export that opens with it."""

import json
import math
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests import small_tokenizers
from tests.commands import trainer
from tests.launching import checkpoint, records, train, write_recipe
from tests.messages import says
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.store import verify
from trainer.config.schema import DataConfig
from trainer.data import bridge, bridge_proof
from trainer.data.assets import embedded_documents
from trainer.data.corpus import open_corpus
from trainer.data.tokenizer import load_tokenizer

KINDS = [
    "byte-level-split-nfc",
    "byte-fallback",
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("byte-level", "unigram", "word-piece")),
]
TEXTS = ["To be, or not to be", "caf\u00e9 cafe\u0301  <|im_end|> </s>\n\n", "  1234 \U0001f600\t<tool_call>[SEP]"]
SHORT = {
    "max_steps": 4,
    "sequence_length": 64,
    "schedule": {"warmup_steps": 1},
    "checkpoint": {"every_steps": 2},
    "evaluation": {
        "every_steps": 4,
        "sample_tokens": 8,
        "prompt": "To be",
        "tasks": ["shakespeare_lines"],
        "task_items": 4,
    },
}


@pytest.fixture(autouse=True)
def few_characters(monkeypatch, tmp_path):
    """A proof of a fraction of the characters, remembered in a folder of the test."""
    monkeypatch.setattr(bridge_proof, "characters", lambda: [*map(chr, range(0x20, 0x250))])
    monkeypatch.setattr(bridge.files, "project_folder", lambda: tmp_path)


def prepared(folder, source):
    """A corpus of some scenes by a tokenizer, which `prepare` made."""
    scenes = embedded_documents("shakespeare", "train")[:12]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": scene}) + "\n" for scene in scenes))
    words = ("--out", str(folder / "corpus"), "--tokenizer", str(source), "--validation-fraction", "0.2")
    said = trainer("prepare", str(folder / "text.jsonl"), *words)
    assert said.code == 0, said.err
    return folder / "corpus"


def recipe_of(folder, corpus, **changes):
    data = {"corpus": str(corpus), "train": [], "validation": [], "tokenizer": None}
    return write_recipe(folder, **{**SHORT, "data": data, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_from_text_to_an_export_that_opens_with_the_tokenizer_that_came_in(kind, tmp_path):
    source = small_tokenizers.write(kind, tmp_path / "original")
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}\n")
    recipe = recipe_of(tmp_path, prepared(tmp_path, source))
    source = source.rename(tmp_path / "moved")
    original, own = AutoTokenizer.from_pretrained(source, split_special_tokens=True), load_tokenizer(str(source))
    train(recipe)

    run, last = tmp_path / "runs" / "tiny", checkpoint(recipe, 4)
    assert verify(last) == []
    manifest = read_manifest(last)
    assert manifest.vocab_size == own.vocab_size == len(original)
    kept = {path.name: path.read_bytes() for path in source.iterdir()}
    assert {name: (last / "tokenizer" / name).read_bytes() for name in kept} == kept
    (record,) = (each for each in records(recipe) if "shakespeare_lines/acc" in each)
    assert record["step"] == 4

    (loss,) = json.loads(trainer("eval", str(run), "--json").out)
    held_out = open_corpus(DataConfig(corpus=str(tmp_path / "corpus")), 64).validation
    labels = held_out.sequences(np.arange(held_out.num_sequences))[:, 1:].ravel()
    num_bytes = len(own.decode_bytes(id for id in labels.tolist() if id not in own.specials.values()))
    assert loss["num_tokens"] == labels.size
    assert loss["bits_per_byte"] == pytest.approx(loss["loss"] * labels.size / num_bytes / math.log(2))

    # From here on nothing but the checkpoint is there.
    alone = shutil.copytree(last, tmp_path / "elsewhere" / last.name)
    shutil.rmtree(tmp_path / "corpus")
    shutil.rmtree(source)
    written = trainer("generate", str(alone), "--prompt", "To be", "--max-new-tokens", "5", "--json")
    assert written.code == 0, written.err
    assert json.loads(written.out)["num_tokens"] > 0
    tasks = trainer("eval", str(alone), "--tasks", "shakespeare_lines", "--limit", "4", "--json")
    assert tasks.code == 0, tasks.err
    (task,) = json.loads(tasks.out)
    assert task["acc"] == record["shakespeare_lines/acc"]
    says(trainer("export", str(alone), "--out", str(tmp_path / "exported")).out, tmp_path / "exported")
    for out in (tmp_path / "exported", run / "exported"):
        assert {name: (out / name).read_bytes() for name in kept} == kept
        opened = AutoTokenizer.from_pretrained(out, split_special_tokens=True)
        assert opened.chat_template == original.chat_template
        assert opened.all_special_tokens == original.all_special_tokens
        for text in TEXTS:
            ids = original(text, add_special_tokens=False)["input_ids"]
            assert opened(text, add_special_tokens=False)["input_ids"] == ids == own.encode(text)
            assert opened(text)["input_ids"] == original(text)["input_ids"]
