"""Whether the data were made with the model's own tokenizer is found by what both make of the same texts."""

import json

import pytest

from tests.messages import says
from tests.sources import write_source, write_tokenizer
from trainer.data.tokenizer import load_tokenizer
from trainer.pretrained import open_source
from trainer.run.own_tokenizer import PROBES, likeness


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with the tokenizer of GPT-2."""
    folder = write_source(tmp_path_factory.mktemp("source"))
    write_tokenizer(folder, "gpt2")
    return open_source(folder, "the model")


def test_the_same_ids_are_the_same_tokenizer_whatever_its_files(source):
    found = likeness(source, load_tokenizer("gpt2"))
    assert (found.kind, found.words, found.is_warning) == ("own", None, False)


def test_another_tokenizer_is_told_with_figures(source):
    found = likeness(source, load_tokenizer("bytes"))
    assert found.kind == "another" and found.is_warning
    says(found.words, "bytes", "257 ids", "50,257 ids", f"of {len(PROBES)} texts", source.folder)


def test_what_cannot_be_compared_is_not_a_warning(source, tmp_path):
    assert likeness(source, None).kind == "unknown" and not likeness(source, None).is_warning
    bare = write_source(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    found = likeness(open_source(bare, "the bare model"), load_tokenizer("bytes"))
    assert found.kind == "unknown"
    says(found.words, "the bare model", "no tokenizer")
    (bare / "tokenizer.json").write_text(json.dumps({"model": 7}))
    broken = likeness(open_source(bare, "it"), load_tokenizer("bytes"))
    assert broken.kind == "unknown"
    says(broken.words, bare, "tokenizer")
    assert broken.is_warning and not found.is_warning
