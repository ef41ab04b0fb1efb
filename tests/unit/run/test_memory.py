"""A run that no memory could hold is refused before its first step."""

import pytest
import torch

from tests.messages import says
from tests.unit.model.tiny import tiny_model
from trainer.config.load import load
from trainer.errors import OutOfMemoryError
from trainer.metrics.memory_advice import advice
from trainer.run import memory

SHAPE = {"micro_batch": 8, "sequence_length": 24}


def test_the_least_is_weights_gradients_a_moment_and_the_blocks_inputs():
    model = tiny_model("llama", 257)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kept = model.config.num_hidden_layers * model.config.hidden_size * 8 * 24
    assert memory.least_bytes(model, **SHAPE, precision="no") == 12 * parameters + 4 * kept
    assert memory.least_bytes(model, **SHAPE, precision="bf16") == 12 * parameters + 2 * kept


def test_a_process_that_keeps_a_part_has_all_the_weights_before_it():
    model = tiny_model("llama", 257)
    parameters, whole = sum(p.numel() for p in model.parameters()), memory.least_bytes(model, **SHAPE, precision="no")
    found = [memory.least_bytes(model, **SHAPE, precision="no", num_parts=number) for number in (2, 64)]
    assert found == [whole - 6 * parameters, whole - 8 * parameters]


def test_it_is_a_bound_from_below_of_what_a_step_keeps():
    model = tiny_model("llama", 257)
    saved = {}
    tokens = torch.zeros((8, 24), dtype=torch.int64)

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, labels=tokens)
    held = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert memory.least_bytes(model, **SHAPE, precision="no") - 12 * parameters <= held


@pytest.mark.parametrize(("there", "processes", "fits"), [(10**12, 1, True), (10**5, 1, False), (10**6, 10**3, False)])
def test_what_a_machine_cannot_hold_is_refused_with_the_advice(monkeypatch, there, processes, fits):
    model = tiny_model("llama", 257)
    config = load("shakespeare").config.model_copy(update=SHAPE)
    monkeypatch.setattr(memory, "machine_bytes", lambda: there)

    def ask():
        memory.check_memory(model, torch.device("cpu"), config, "no", processes)

    if fits:
        ask()
        return
    with pytest.raises(OutOfMemoryError) as caught:
        ask()
    says(caught.value, "micro_batch", 8, advice(8, "no"))


def test_the_machine_has_memory():
    assert memory.machine_bytes() > 10**8
