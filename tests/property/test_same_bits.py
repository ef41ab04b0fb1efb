"""What the writer makes of a snapshot, and what Accelerate's own save_state makes at the same step, load to the same bits."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.launching import TINY_GPT2, TINY_LLAMA, train, write_recipe
from tests.small_runs import Small
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.config.schema import CheckpointConfig, OptimizerConfig
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.optim.build import build_optimizer

VOCAB = 11


def configs():
    """Configs of GPT-2-like and Llama-like models, tied and untied, of odd sizes."""
    llama = st.builds(
        lambda heads, width, layers, tied: {
            "model_type": "llama",
            "hidden_size": 2 * heads * width,
            "num_attention_heads": heads,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "tie_word_embeddings": tied,
        },
        st.integers(1, 3),
        st.integers(1, 5),
        st.integers(1, 2),
        st.booleans(),
    )
    gpt2 = st.builds(
        lambda heads, width, layers, tied: {
            "model_type": "gpt2",
            "n_embd": heads * width,
            "n_head": heads,
            "n_layer": layers,
            "tie_word_embeddings": tied,
        },
        st.integers(1, 3),
        st.integers(1, 7),
        st.integers(1, 2),
        st.booleans(),
    )
    return llama | gpt2


def builder(config: dict, optimizer: str, seed: int):
    def build():
        resolved = resolve(None, config, vocab_size=VOCAB, sequence_length=8, eot_id=0)
        model = build_model(resolved, vocab_size=VOCAB, seed=seed, device=torch.device("cpu"))
        return model, build_optimizer(
            model, OptimizerConfig(name=optimizer, lr=0.01, weight_decay=0.1, muon_lr=0.02, muon_weight_decay=0.1)
        )

    return build


def update(run: Small, *, with_moments: bool) -> None:
    """One step from random gradients, or a step in name only: the optimizer then has no moments yet."""
    if with_moments:
        for parameter in run.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        run.optimizer.step()
        run.optimizer.zero_grad()
    run.state.advance(4, 32)


def assert_same_bits(one: Path, other: Path) -> None:
    """Every tensor and every value that is read from two folders, whatever the layout of the files."""
    assert verify(one) == verify(other) == []
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert read_manifest(one).state == read_manifest(other).state
    assert_equal(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        assert_equal(*(torch.load(folder / name, weights_only=True) for folder in (one, other)))
    for path in one.glob("random_states_*.json"):
        assert json.loads(path.read_text()) == json.loads((other / path.name).read_text())


def assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert (
            one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))
            if one.dim()
            else one.equal(other)
        )
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs(), st.sampled_from(["adamw", "muon"]), st.booleans(), st.integers(0, 9))
def test_a_folder_of_the_writer_loads_to_the_bits_of_a_plain_save_state(config, optimizer, with_moments, seed):
    with tempfile.TemporaryDirectory() as folder:
        stores = [CheckpointStore(Path(folder, name, "run")) for name in ("written", "plain")]
        for store in stores:
            store.folder.parent.mkdir(parents=True)
        build = builder(config, optimizer, seed)
        run = Small(stores[0], CheckpointConfig(), build=build)
        for _ in range(2):
            update(run, with_moments=with_moments)
        run.save("every")
        expected = run.everything()
        run.checkpointer.close()
        run.blocks_into(stores[1])
        run.save("every")

        assert_same_bits(stores[0].path(2), stores[1].path(2))
        for store in stores:
            other = Small(store, build=builder(config, optimizer, seed + 1))
            other.accelerator.load_state(str(store.path(2)))
            assert other.everything() == expected


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({"model": {"config": TINY_GPT2}}, marks=pytest.mark.long),
        {"model": {"config": {**TINY_LLAMA, "tie_word_embeddings": False}}, "optimizer": {"name": "muon"}},
    ],
    ids=["gpt2-tied-adamw", "llama-untied-muon"],
)
def test_two_ranks_make_the_same_checkpoints_with_a_writer_and_without(tmp_path, variant):
    folders = []
    for is_asynchronous in (True, False):
        folder = tmp_path / str(is_asynchronous)
        folder.mkdir()
        wanted = {"every_steps": 4, "keep_last": 9, "asynchronous": is_asynchronous}
        train(write_recipe(folder, **variant, max_steps=12, checkpoint=wanted), num_processes=2)
        folders.append(folder / "checkpoints" / "tiny")
    for step in (4, 8, 12):
        assert_same_bits(*(CheckpointStore(folder).path(step) for folder in folders))
    assert (CheckpointStore(folders[0]).path(12) / "random_states_1.json").is_file()
