"""Every family and preset, sharded over two ranks: a step's loss, gradients and weights, scores and a text are those of the model that is whole."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.accelerators import forget_accelerator
from tests.launching import ONE_THREAD, meeting_point, server_context
from tests.unit.model.families import FAMILIES, VOCABULARY, family_model
from trainer.config.optimizers import optimizer_section
from trainer.evaluation.generate import Limits, Row, Sampling, generate
from trainer.launch.accelerator import make_accelerator
from trainer.launch.environment import LaunchEnv, Sharding
from trainer.model.build import build_model
from trainer.model.presets import PRESETS, preset_fields
from trainer.model.resolve import resolve
from trainer.model.scores import token_scores
from trainer.optim.build import build_optimizer, step_if_finite
from trainer.parallel import parallel_of
from trainer.tensor_parts import is_part, whole

SMALL = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 2),
    **dict.fromkeys(("hidden_size", "n_embd"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head"), 4),
    **{"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8},
}
"""What a preset is reduced to."""

VARIANTS = {
    "uneven rows": {"intermediate_size": 33},
    "tied": {"tie_word_embeddings": True},
    "no row on one rank": {"intermediate_size": 1},
}


FAST_HERE = {"gemma2", "qwen3_moe", "tied", "no row on one rank", "gpt2-124m"}
"""A soft cap, experts, one tensor under two names, less rows than ranks, and positions that belong to no block."""


def preset_model(name):
    fields = preset_fields(name)
    fields |= {key: value for key, value in SMALL.items() if key in fields}
    config = resolve(None, fields, vocab_size=VOCABULARY, sequence_length=32, eot_id=VOCABULARY - 1)
    return build_model(config, vocab_size=VOCABULARY, seed=1, device="cpu")


def built(name):
    if name in FAMILIES:
        return family_model(name, **({"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if name == "gpt2" else {}))
    return family_model("llama", **VARIANTS[name]) if name in VARIANTS else preset_model(name)


def _rank(rank: int, variables: dict[str, str], names: list[str], folder: str) -> None:
    os.environ |= {**ONE_THREAD, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    for name in names:
        try:
            _take_a_step(rank, name, Path(folder))
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    dist.barrier()
    dist.destroy_process_group()


def _take_a_step(rank: int, name: str, folder: Path) -> None:
    forget_accelerator()
    place = LaunchEnv("no", True, 2, rank == 0, Sharding())
    accelerator = make_accelerator(place, precision="no", deterministic=False, seed=1, trackers=[], runs_folder=folder)
    parallel = parallel_of(accelerator)
    assert parallel.is_sharded
    bare = built(name)
    alone = copy.deepcopy(bare).eval()
    settings = optimizer_section()(lr=0.01)
    optimizers = [build_optimizer(model, settings) for model in (bare, alone)]
    model, optimizer = parallel.prepare(bare, optimizers[0])
    assert all(map(is_part, model.parameters()))
    model.eval()  # without dropout, and without the loss of routers, which is of a rank's own tokens
    tokens = torch.randint(VOCABULARY, (2, 25), generator=torch.Generator().manual_seed(3))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    loss = model(inputs[rank : rank + 1], labels=labels[rank : rank + 1])
    accelerator.backward(loss)
    expected = alone(inputs, labels=labels)
    expected.backward()
    torch.testing.assert_close(accelerator.reduce(loss.detach(), "mean"), expected.detach(), rtol=1e-6, atol=0)
    for (key, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(
            whole(mine.grad), theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )
    norms = [parallel.clip_grad_norm(model.parameters(), 1.0), torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0)]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    before = [whole(parameter.detach()).clone() for parameter in model.parameters()]
    step_if_finite(optimizer, torch.tensor(float("nan")))
    assert all(torch.equal(whole(now.detach()), then) for now, then in zip(model.parameters(), before, strict=True))
    for each, norm in zip((optimizer, optimizers[1]), norms, strict=True):
        step_if_finite(each, norm)
    positions, wanted = torch.arange(24), labels[0]
    ours, theirs = (token_scores(each, inputs[:1], positions, wanted)[0] for each in (model, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert all(map(is_part, model.parameters())), "what was gathered for a pass without gradients is let go"
    row = Row(prompt_ids=[1, 2, 3], sampling=Sampling(temperature=0.0))
    limits = Limits(max_new_tokens=3, sequence_length=32, vocab_size=VOCABULARY)
    texts = [generate(each, [row], limits)[0].tokens for each in (model, alone)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(FAST_HERE, id="fast"),
        pytest.param({*FAMILIES, *VARIANTS, *PRESETS} - FAST_HERE, id="all others", marks=pytest.mark.long),
    ],
)
def test_a_sharded_step_is_that_of_the_whole_model(names, tmp_path):
    _store, place = meeting_point(2)
    variables = {name: str(value) for name, value in place.items()}
    ranks = [
        server_context().Process(target=_rank, args=(rank, variables, sorted(names), str(tmp_path))) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    assert [process.exitcode for process in ranks] == [0, 0]
