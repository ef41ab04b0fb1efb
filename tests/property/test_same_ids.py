"""A Hugging Face tokenizer gives the ids that AutoTokenizer gives, whatever way it encodes by."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import small_tokenizers
from tests.same_ids import different, strings
from trainer.data import bridge, bridge_proof
from trainer.data.probe import characters
from trainer.data.tokenizer import load_tokenizer, well_formed

BY_TIKTOKEN = {"byte-level", "byte-level-nfc", "byte-level-split", "byte-level-split-nfc"}


@pytest.fixture(scope="module")
def texts():
    return strings(2000)


@pytest.mark.parametrize("kind", small_tokenizers.KINDS)
def test_ids_are_those_of_auto_tokenizer(kind, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(bridge.files, "project_folder", lambda: tmp_path)
    if kind != "byte-level-split-nfc":  # one that is held against every character is enough
        met = set("".join(texts))
        monkeypatch.setattr(bridge_proof, "characters", lambda: [each for each in characters() if each in met])
    folder = small_tokenizers.write(kind, tmp_path / kind)
    opened = load_tokenizer(str(folder))
    assert isinstance(opened.bridge, bridge.Bridge) == (kind in BY_TIKTOKEN), opened.way
    assert different(folder, texts) == []
    if kind in BY_TIKTOKEN:
        assert sum(map(opened.bridge.takes, map(well_formed, texts))) > 0.4 * len(texts)


PIECES = st.sampled_from(
    [
        "a",
        "be",
        "don't",
        " ",
        "  ",
        "\n",
        ".",
        "1",
        "\u00e9",
        "\u65e5",
        "\u3000",
        "\u2028",
        "\x85",
        "\U0010ffff",
        "\x7f",
    ]
)


@given(st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=6))
@settings(deadline=None, max_examples=200)
def test_a_batch_has_the_ids_of_its_texts(batch):
    gpt2 = load_tokenizer("gpt2")
    for ours, text in zip(gpt2.encode_batch(batch), batch, strict=True):
        assert ours.tolist() == gpt2.encode(text)
