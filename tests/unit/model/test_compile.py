"""The chunked loss under torch.compile, Accelerate's regional compilation and its autocast."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.utils import counters

from tests.accelerators import forget_accelerator
from tests.unit.model.tiny import tiny_model


def batch(rows=4, columns=16):
    tokens = torch.randint(257, (rows, columns + 1), generator=torch.Generator().manual_seed(3))
    return tokens[:, :-1], tokens[:, 1:]


@pytest.fixture
def accelerate_anew():
    def forget():
        forget_accelerator()
        torch._dynamo.reset()
        counters.clear()

    forget()
    yield
    forget()


def prepared(model, precision, regional):
    plugin = TorchDynamoPlugin(backend="eager", use_regional_compilation=regional)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, dynamo_plugin=plugin)
    return accelerator, accelerator.prepare_model(model)


@pytest.mark.parametrize(
    ("shape", "precision", "regional"),
    [("gpt2", "no", False), ("llama-tied", "bf16", False), ("gpt2", "bf16", True), ("llama-tied", "no", True)],
)
def test_a_compiled_model_has_the_loss_and_gradients_of_the_eager_one(shape, precision, regional, accelerate_anew):
    eager = tiny_model(shape)
    inputs, labels = batch()
    accelerator, compiled = prepared(copy.deepcopy(eager), precision, regional)
    loss = compiled(inputs, labels=labels)
    accelerator.backward(loss)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = eager(inputs, labels=labels)
    expected.backward()

    assert counters["stats"]["unique_graphs"] >= (3 if regional else 1), "nothing was compiled"
    assert loss.dtype == torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision == "no" else {"rtol": 3e-2, "atol": 3e-3}
    torch.testing.assert_close(loss, expected, **tolerance)
    plain = accelerator.unwrap_model(compiled, keep_torch_compile=False)
    assert list(plain.state_dict()) == list(eager.state_dict())
    for actual, wanted in zip(plain.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, wanted.grad, **tolerance)

    graphs = counters["stats"]["unique_graphs"]
    compiled(inputs, labels=labels)
    assert counters["stats"]["unique_graphs"] == graphs, "the second call compiled again"


def test_regional_compilation_under_bf16_runs_compiled_blocks(accelerate_anew):
    """Accelerate patches `forward` on the instance and then copies the model: the copy must call its own blocks."""
    _, compiled = prepared(tiny_model("llama"), "bf16", True)
    assert all(isinstance(block, OptimizedModule) for block in compiled.model.layers)
    assert compiled.forward.__self__ is compiled
    inputs, labels = batch()
    compiled(inputs, labels=labels)
    # Rotary tables, embedding and norm are regions too; without the blocks there would be no attention in any graph.
    frames = counters["frames"]
    assert frames["ok"] == frames["total"] >= 4
