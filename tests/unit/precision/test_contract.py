"""What this room believes of TransformerEngine, held against the real one where it is installed (no GPU is needed for that)."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch  # before transformer_engine, whose library finds CUDA's through it
from accelerate.utils.transformer_engine import convert_model

from tests import emulation
from tests.launching import TINY_GPT2, TINY_LLAMA
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.precision import backend
from trainer.precision.convert import convert, survey
from trainer.precision.layers import Switch
from trainer.precision.recipes import RECIPES


def is_installed() -> bool:
    try:
        return find_spec("transformer_engine") is not None and version("transformer_engine_torch") is not None
    except PackageNotFoundError:
        return False


@pytest.fixture(params=["real", "stand-in"])
def loaded(request):
    if request.param == "real" and not is_installed():
        pytest.skip("TransformerEngine is not installed here")
    if request.param == "stand-in":
        emulation.install()
    yield backend.load()
    emulation.uninstall()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_has_its_class_its_options_its_formats_and_its_predicate(loaded, recipe):
    fields = {field.name for field in dataclasses.fields(getattr(loaded.recipes, recipe.te_class))}
    assert recipe.options <= fields
    assert callable(getattr(loaded.pytorch, recipe.predicate))
    for form in recipe.formats:
        made = backend.make_recipe(recipe, form, {})
        assert made.fp8_format.name == form.upper()
        assert made.delayed() == (not recipe.stateless)
        assert made.nvfp4() == (recipe.name == "nvfp4")


def test_every_name_of_it_that_is_used_is_there(loaded):
    assert callable(loaded.pytorch.autocast)
    assert callable(loaded.pytorch.fp8_autocast)
    assert {"forward", "_get_weight_tensors", "get_extra_state"} <= set(dir(loaded.pytorch.Linear))


@pytest.mark.parametrize("family", [TINY_GPT2, TINY_LLAMA], ids=["gpt2", "llama"])
def test_its_own_linear_takes_over_the_parameters_of_a_model_and_accelerate_finds_nothing_left_to_convert(
    loaded, family, monkeypatch
):
    config = resolve(None, {**family, "tie_word_embeddings": True}, vocab_size=200, sequence_length=16)
    model = build_model(config, vocab_size=200, seed=0, device=torch.device("cpu")).eval()
    before, parameters = (
        {key: tensor.clone() for key, tensor in model.state_dict().items()},
        dict(model.named_parameters()),
    )
    inputs, numbers = torch.arange(32).view(2, 16), torch.get_rng_state()
    logits = model(inputs).logits
    switch = Switch(loaded.pytorch.autocast, backend.make_recipe(RECIPES["current"], "hybrid", {}))
    with monkeypatch.context() as as_on_a_gpu:
        as_on_a_gpu.setattr(torch.cuda, "is_available", lambda: True)  # without one the real layer refuses to be made
        converted = convert(model, survey(model, RECIPES["current"], first=0, last=0), switch)
    assert converted
    assert all(isinstance(layer, loaded.pytorch.Linear) for layer in converted.values())
    convert_model(model, to_transformer_engine=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    model.load_state_dict(before, strict=True)
    assert torch.equal(model(inputs).logits, logits)
    assert torch.equal(torch.get_rng_state(), numbers)
