"""What only a GPU can show: the late reading of a step's numbers, bf16, and a resume that is exact with cuBLAS and attention kernels."""

import json

import pytest
import torch

from tests.gpu.runs import Scene, ended, start
from tests.launching import final_bytes, outcome, steps, wait_for_step, write_recipe, write_shards
from trainer.model.head import chunked_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_dropout": 0.1,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_on_a_gpu_resumes_to_the_same_bytes(tmp_path, precision, optimizer):
    """As it is shipped, and with sequences of several tiles: within one tile attention's backward has nothing to add up in any order."""
    settings = {"max_steps": 300, "sequence_length": 1024, "model": {"config": LLAMA}, "optimizer": {"name": optimizer}}
    settings["checkpoint"] = {"every_steps": 20}
    for name in ("straight", "killed"):
        write_shards(tmp_path / name / "data", num_train=60_000, num_val=5_000)
    straight, killed = (write_recipe(tmp_path / name, **settings) for name in ("straight", "killed"))
    scene = Scene(emulated=False, work=tmp_path)
    whole, run = (start(scene, recipe, precision=precision) for recipe in (straight, killed))
    wait_for_step(killed, 130, run)
    run.kill()
    ended(straight, whole)
    ended(killed, start(scene, killed, precision=precision))

    assert outcome(killed)["resume"].startswith("resume exact: ")
    assert final_bytes(killed, 300) == final_bytes(straight, 300)
    assert [record["loss"] for record in steps(killed)] == [record["loss"] for record in steps(straight)]
    manifest = json.loads((killed.parent / "checkpoints/tiny/step-00000300/manifest.json").read_text())
    assert manifest["precision"] == precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_the_chunked_loss_on_a_gpu_is_that_of_float64(dtype, fused):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(600, 64, device="cuda", generator=generator, requires_grad=True)
    weight = torch.randn(1024, 64, device="cuda", generator=generator, requires_grad=True)
    labels = torch.randint(0, 1000, (600,), device="cuda", generator=generator)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss, number = chunked_cross_entropy(hidden, weight, labels, vocab_size=1000, chunk_tokens=128, fused=fused)
    (loss / number).backward()
    wanted = torch.nn.functional.cross_entropy(hidden.double() @ weight.double()[:1000].T, labels)
    gradients = torch.autograd.grad(wanted, (hidden, weight))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (loss / number).item() == pytest.approx(wanted.item(), rel=tolerance)
    for parameter, gradient in zip((hidden, weight), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= tolerance * gradient.norm()
