"""Beside an exported model a tokenizer's files open as they did alone, or it is said that they do not."""

import json

import pytest
from transformers import AutoTokenizer

from tests import small_tokenizers
from tests.messages import logged
from trainer.data.exported_tokenizer import write_beside_model
from trainer.data.tokenizer import load_tokenizer

TEXT = "It's  12345 caf\u00e9\n\n<|im_end|>"


@pytest.fixture
def exported(tmp_path):
    """A folder with the config of a Llama, whose tokenizers are usually other ones."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    return folder


@pytest.mark.parametrize("kind", ["byte-level-split", "byte-fallback"])
@pytest.mark.parametrize("names_class", [True, False])
def test_the_ids_are_those_of_the_original_whether_or_not_a_class_is_named(
    kind, names_class, exported, tmp_path, caplog
):
    source = small_tokenizers.write(kind, tmp_path / "original")
    if not names_class:
        config = json.loads((source / "tokenizer_config.json").read_text())
        del config["tokenizer_class"]
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(source))
    write_beside_model(tokenizer, exported)
    opened = AutoTokenizer.from_pretrained(exported, split_special_tokens=True)
    assert opened(TEXT, add_special_tokens=False)["input_ids"] == tokenizer.encode(TEXT)
    assert not caplog.records
    for path in source.iterdir():
        assert (exported / path.name).read_bytes() == path.read_bytes()
    assert ("tokenizer_class" in json.loads((exported / "config.json").read_text())) is not names_class


def test_files_that_open_in_another_way_there_are_named(exported, tmp_path, caplog):
    source = small_tokenizers.write("byte-level-split", tmp_path / "original")
    tokenizer = load_tokenizer(str(source))
    pipeline = json.loads((source / "tokenizer.json").read_text())
    pipeline["normalizer"] = {"type": "Lowercase"}
    (source / "tokenizer.json").write_text(json.dumps(pipeline))
    write_beside_model(tokenizer, exported)
    logged(caplog, "AutoTokenizer", source)
