"""What the model writes now: a sample, without a trace in the run's random state."""

from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError
from trainer.evaluation.loss import evaluating

_NEARLY_ZERO = 1e-6
"""Below this temperature the likeliest token comes in any case, and logits divided by it may overflow."""


def generate(
    model: nn.Module,
    prompt_ids: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    vocab_size: int,
) -> list[int]:
    """The tokens that follow a prompt, the prompt not included; an end-of-text id ends them and is the last.

    prompt_ids   at least one; each below `vocab_size`
    temperature  0, or nearly: the likeliest token each time, and `seed`, `top_k`, `top_p` do not count
    vocab_size   real ids; those from here on are padding and never come
    raises       ConfigError when the prompt leaves no position free

    Fewer tokens come when the model's positions end first. The global random state stays as it was.
    """
    assert prompt_ids and all(0 <= i < vocab_size for i in prompt_ids), "a prompt is at least one id of the vocabulary"
    room = num_positions(model.config) - len(prompt_ids)
    if room <= 0:
        raise ConfigError(
            f"the prompt has {len(prompt_ids)} tokens, and the model has {num_positions(model.config)} positions; shorten it"
        )
    if max_new_tokens <= 0:
        return []
    device = next(model.parameters()).device
    tokens = torch.tensor([prompt_ids], dtype=torch.long, device=device)
    settings = _sampling(temperature, top_k, top_p)
    settings["suppress_tokens"] = list(range(vocab_size, model.config.vocab_size)) or None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(model):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=min(max_new_tokens, room),
            use_cache=True,
            **settings,
        )
    return output[0, len(prompt_ids) :].tolist()


def _sampling(temperature: float, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    if temperature < _NEARLY_ZERO:
        return {"do_sample": False}
    top_p = 1.0 if top_p is None else top_p
    return {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p}


def num_positions(config: Any) -> int:
    """How many positions a model of this transformers config has; without a limit of its own, as many as anyone asks for."""
    for field in ("max_position_embeddings", "max_seq_len", "n_positions"):
        limit = getattr(config, field, None)
        if isinstance(limit, int):
            return limit
    return 2**31
