"""How likely a model finds given tokens, without the logits of any other position."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.model.head import compute_dtype, default_chunk_tokens


@torch.no_grad()
def token_scores(model: PreTrainedModel, inputs: Tensor, positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each wanted token, and whether it is the likeliest one, in the precision that the loss has.

    inputs     [R, L] ids
    positions  [N] places in the flattened inputs; the token after each is asked for
    wanted     [N] ids, each below the model's real vocabulary
    returns    [N] fp32 in nats, and [N] bool; of equally likely tokens the lowest id is the likeliest

    It is a pass of the model itself, whose weights a sharded one gathers for it.
    """
    return model(inputs, scored=(positions, wanted))


def scores_of_pass(
    model: PreTrainedModel, plain_forward: Callable[..., Any], inputs: Tensor, positions: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """What `token_scores` returns, within the model's forward pass; `plain_forward` is that of its class in transformers."""
    if model.head_reason is not None:
        logits = plain_forward(model, inputs, use_cache=False).logits.flatten(0, 1)[positions]
        return _scores(logits, wanted, model.real_vocab_size)
    hidden = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)[positions]
    head = model.get_output_embeddings()
    dtype = compute_dtype(hidden, head.weight)
    weight, bias = head.weight.to(dtype), getattr(head, "bias", None)
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        chunk = default_chunk_tokens(weight.shape[0], hidden.device)
        for some, of_some in zip(hidden.to(dtype).split(chunk), wanted.split(chunk), strict=True):
            logits = (some @ weight.t()).float()
            logits = model.after_head(logits if bias is None else logits + bias)
            parts.append(_scores(logits, of_some, model.real_vocab_size))
    log_probabilities, is_likeliest = zip(*parts, strict=True)
    return torch.cat(log_probabilities), torch.cat(is_likeliest)


def _scores(logits: Tensor, wanted: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """From logits [N, Vp], whose ids from `vocab_size` on are padding."""
    log_probabilities = logits.float()[:, :vocab_size].log_softmax(-1)
    return log_probabilities.gather(1, wanted.unsqueeze(1)).squeeze(1), log_probabilities.argmax(-1) == wanted
