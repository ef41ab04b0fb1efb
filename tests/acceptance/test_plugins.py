"""A person's own architecture, from a package that a recipe names: trained, resumed, exported, and known by version and digest."""

import sys
from functools import partial

import pytest
import torch

from tests.commands import paragraph, trainer
from tests.launching import Started, checkpoint, final_bytes, write_recipe
from tests.messages import says
from tests.own_architecture import NAME, write_package
from trainer.checkpoint.format.manifest import read_manifest

MODEL = {"config": {"model_type": NAME, "hidden_size": 16}}


def put_on_path(folder):
    """What PYTHONPATH does for a process that starts, for a rank that is forked."""
    sys.path.insert(0, folder)


def train(recipe, packages, *overrides):
    run = Started(recipe, overrides, 1, sabotage=partial(put_on_path, str(packages)))
    assert run.wait() == 0, run.text()
    return run.text()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The folder that holds the package, on the path of this process."""
    write_package(tmp_path / "packages")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield tmp_path / "packages"
    sys.modules.pop(NAME, None)


def _recipe(folder):
    folder.mkdir()
    return write_recipe(folder, model=MODEL, plugins=[NAME], schedule={"name": "constant"})


def test_an_architecture_of_ones_own_trains_resumes_and_is_exported(tmp_path, packages):
    whole, parted = _recipe(tmp_path / "whole"), _recipe(tmp_path / "parted")
    train(whole, packages, "max_steps=10")
    train(parted, packages, "max_steps=5")
    code = packages / NAME / "__init__.py"
    code.write_text(code.read_text() + "# mended\n")
    said = train(parted, packages, "max_steps=10")
    assert final_bytes(parted, 10) == final_bytes(whole, 10)
    before, now = (read_manifest(checkpoint(each, 10)).versions[f"plugin {NAME}"] for each in (whole, parted))
    assert before != now
    says(said, f"plugin {NAME} {before} -> {now}")

    out = tmp_path / "exported"
    assert trainer("export", str(tmp_path / "whole" / "runs" / "tiny"), "--out", str(out)).code == 0
    says((out / "README.md").read_text(), f"import {NAME}")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "RunningMeanForCausalLM"
    from safetensors.torch import load_file

    trained = load_file(checkpoint(whole, 10) / "model.safetensors")
    assert torch.equal(model.model.layers[1].gate.weight, trained["model.layers.1.gate.weight"])


def test_a_package_that_is_not_there_is_refused(tmp_path):
    recipe = _recipe(tmp_path / "run")
    said = trainer("launch", "cpu", str(recipe), "plugins=[not_there]")
    assert said.code == 2
    says(paragraph(said.err), "plugins", "not_there", "pip install", "PYTHONPATH")


def test_a_package_whose_import_fails_is_refused(tmp_path, packages):
    (packages / NAME / "__init__.py").write_text("raise RuntimeError('half written')")
    recipe = _recipe(tmp_path / "run")
    run = Started(recipe, (), 1, sabotage=partial(put_on_path, str(packages)))
    assert run.wait() == 2
    says(paragraph(run.text()), "plugins", NAME, "half written", f"import {NAME}")
