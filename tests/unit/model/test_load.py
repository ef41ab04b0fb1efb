"""A checkpoint's model comes back with its weights and our loss, or the error says what does not fit."""

import pytest
import torch
from safetensors.torch import save_file, save_model

from tests.messages import refuses
from tests.unit.model.tiny import SHAPES, tiny_model
from trainer.errors import CheckpointError, ConfigError
from trainer.model.load import load_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_has_the_weights_of_the_file_and_our_loss(shape, tmp_path):
    model = tiny_model(shape, seed=5)
    save_model(model, str(tmp_path / "model.safetensors"))
    loaded = load_model(model.config.to_dict(), tmp_path / "model.safetensors", vocab_size=257, device=CPU)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(loaded(tokens, labels=tokens), model(tokens, labels=tokens))


def test_a_type_that_transformers_does_not_know_is_refused(tmp_path):
    with refuses(ConfigError, "'lama'", "transformers"):
        load_model({"model_type": "lama"}, tmp_path / "model.safetensors", vocab_size=9, device=CPU)


@pytest.mark.parametrize("damage", ["missing file", "missing tensor", "other shape", "no weights"])
def test_weights_of_another_model_are_refused(tmp_path, damage):
    path, model = tmp_path / "model.safetensors", tiny_model("llama")
    weights = dict(model.state_dict())
    if damage == "missing tensor":
        weights.pop("model.norm.weight")
    if damage == "other shape":
        weights["model.norm.weight"] = torch.ones(7)
    if damage == "no weights":
        path.write_bytes(b"nothing")
    elif damage != "missing file":
        save_file(weights, str(path))
    with refuses(CheckpointError, path, "config"):
        load_model(model.config.to_dict(), path, vocab_size=257, device=CPU)
