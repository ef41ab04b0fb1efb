"""A checkpoint is what `Accelerator.load_state` loads: a dozen lines without this trainer continue from it."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import TINY_GPT2, TINY_LLAMA, checkpoint, environment, train, write_recipe

SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

class Position:
    def state_dict(self): return self.state
    def load_state_dict(self, state): self.state = state

folder = sys.argv[1]
fields = json.load(open(folder + "/manifest.json"))["model"]
model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[fields.pop("model_type")](**fields))
matrices = [p for p in model.parameters() if p.ndim == 2]
tables = {id(model.get_input_embeddings().weight)} | {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
tables.add(id(model.get_output_embeddings().weight))
groups = [[p for p in matrices if id(p) not in tables], [p for p in matrices if id(p) in tables], [p for p in model.parameters() if p.ndim < 2]]
optimizer = torch.optim.AdamW([{"params": group} for group in groups], fused=True)
accelerator, position = Accelerator(cpu=True), Position()
model, optimizer = accelerator.prepare(model, optimizer)
accelerator.register_for_checkpointing(position)
accelerator.load_state(folder)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "position": position.state}, sys.argv[2])
"""


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY_LLAMA, marks=pytest.mark.long),
        pytest.param({**TINY_LLAMA, "tie_word_embeddings": True}, marks=pytest.mark.long),
        TINY_GPT2,
    ],
    ids=["llama", "llama-tied", "gpt2"],
)
def test_a_plain_accelerate_script_loads_a_checkpoint_to_the_same_bits(tmp_path, config):
    recipe = write_recipe(
        tmp_path, max_steps=5, model={"config": config}, optimizer={"name": "adamw"}, schedule={"warmup_steps": 2}
    )
    train(recipe)
    folder, out = checkpoint(recipe, 5), tmp_path / "loaded.pt"
    script = tmp_path / "plain.py"
    script.write_text(SCRIPT)
    variables = {**environment(), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(out)], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = torch.load(out, weights_only=True)

    weights = load_file(folder / "model.safetensors")
    assert set(weights) <= set(loaded["model"])
    assert all(torch.equal(loaded["model"][name], value) for name, value in weights.items())
    stored = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    assert stored.keys() == loaded["optimizer"]["state"].keys()
    for index, moments in stored.items():
        assert all(torch.equal(loaded["optimizer"]["state"][index][name], value) for name, value in moments.items())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert loaded["position"] == manifest["state"]
    assert loaded["position"]["progress"] == {"step": 5, "sequences": 40, "tokens": 640}
