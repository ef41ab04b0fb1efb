"""Which families are not compiled, and why."""

import pytest

from tests.messages import says
from trainer.model import unrolled
from trainer.model.unrolled import uncompiled_because


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", "jamba", "rwkv"])
def test_blocks_that_walk_over_the_tokens_are_not_compiled(model_type):
    says(uncompiled_because(model_type, use_cpu=True), model_type)


@pytest.mark.parametrize("model_type", ["llama", "mamba2", "mixtral", None])
def test_others_are(model_type):
    assert uncompiled_because(model_type, use_cpu=True) is None


def test_on_a_gpu_a_kernel_walks_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(unrolled, "find_spec", lambda name: None)
    says(uncompiled_because("mamba", use_cpu=False), "mamba_ssm")
    monkeypatch.setattr(unrolled, "find_spec", lambda name: name)
    assert uncompiled_because("mamba", use_cpu=False) is None
    assert uncompiled_because("mamba", use_cpu=True), "the kernel is a GPU's"
    assert uncompiled_because("rwkv", use_cpu=False), "it is another's"
