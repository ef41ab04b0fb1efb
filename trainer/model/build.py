"""A transformers model from random weights, whose forward pass with labels is the chunked loss and nothing else.

The object is the transformers class in every respect (state dict, `generate`, `save_pretrained`, hooks): only `forward`
has one more branch. `model(input_ids, labels=labels)` runs the blocks, takes the last hidden state and hands it with
the head's weight to `chunked_cross_entropy`, so DDP, Accelerate's autocast and torch.compile see one module, one call.
What a family does to its logits after the head (after_head.py) is found by comparison when the model is built; one whose logits
come about otherwise takes the plain way. In training mode, the loss of a model with experts has its routers' auxiliary loss in it
(routing.py).
"""

import functools
import logging
import math
import types
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PretrainedConfig, PreTrainedModel, masking_utils

from trainer.contracts import IGNORED_LABEL
from trainer.errors import ConfigError
from trainer.model.after_head import NOTHING, candidates
from trainer.model.head import chunked_cross_entropy
from trainer.model.resolve import resolve
from trainer.model.routing import aux_loss_of, routing_of
from trainer.model.scores import scores_of_pass

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 8
_PROBE_HEAD_SCALE = 2.0**8
"""Fresh logits are near zero, where soft caps are the identity; a power of two comes off again to the last bit."""


REFUSALS = (ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError, ImportError)
"""How a config is refused that cannot be built: few fields are checked, the others end in whatever making a layer raises."""


def _not_packed(position_ids: Tensor) -> None:
    """The answer for batches whose rows are one sequence each, as all of this trainer's are.

    transformers would find it by reading a number back from the device in every forward pass, for which the host waits each time. It gives
    the same answer, but under a torch.compile of the whole model, where it cannot read and makes a mask that keeps attention from its fast kernels.
    """


masking_utils.find_packed_sequence_indices = _not_packed


def build_model(
    config: PretrainedConfig,
    *,
    vocab_size: int,
    seed: int,
    device: torch.device | str,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel:
    """A model of this config with random fp32 weights that depend on `seed` alone, in training mode on `device`.

    vocab_size  real token ids; rows from there to `config.vocab_size` are padding: no probability, never generated
    raises      ConfigError when the model is not causal or cannot be built

    The global random state is neither read nor changed. On one kind of device, the same seed gives the same weights.
    """
    device = torch.device(device)
    assert vocab_size <= config.vocab_size
    model_class = with_chunked_loss(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators), device:
        torch.manual_seed(seed)
        try:
            # Without sdpa the class has one way of attention, its own; named here, it would refuse.
            attention = "sdpa" if model_class._supports_sdpa else None
            model = model_class._from_config(config, dtype=torch.float32, attn_implementation=attention)
        except REFUSALS as error:
            raise ConfigError(_refusal(model_class, error)) from error
        _draw_row_of_padding(model)
    return finish_model(model, vocab_size, gradient_checkpointing=gradient_checkpointing)


def finish_model(model: PreTrainedModel, vocab_size: int, *, gradient_checkpointing: bool) -> PreTrainedModel:
    """Makes a model with weights, or one on the meta device, what the training takes; returns it in training mode.

    vocab_size  as of build_model
    raises      ConfigError when it is not causal
    """
    model.real_vocab_size, model.head_reason, model.head_way, model.initial = vocab_size, None, None, {}
    model.after_head, model.routing = NOTHING, routing_of(model)
    if getattr(model.get_input_embeddings(), "padding_idx", None) is not None:
        # Batches hold no padding here: that row learns as all others do.
        model.get_input_embeddings().padding_idx = None
    _check_ties(model)
    # What ends a text, here and after an export, and which ids are padding and never come.
    model.generation_config = generation_config(vocab_size, model.config.vocab_size, model.config.eos_token_id)
    if model.device.type != "meta":
        _check_causal(model)
        model.head_reason = _find_after_head(model) or _why_not_routed(model)
        if model.head_reason:
            logger.info("loss: plain, with all logits in memory, because %s", model.head_reason)
    if gradient_checkpointing:
        # Newer versions of transformers warn of the older name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def build_shapes(preset: str | None, overrides: dict[str, Any], *, sequence_length: int) -> PreTrainedModel:
    """The model of a recipe's `model` section on the meta device: every shape of its blocks, and no weights.

    The vocabulary is of no meaning: what it is stands in the data, which this does not read.
    """
    config = resolve(preset, overrides, vocab_size=1, sequence_length=sequence_length)
    return build_model(config, vocab_size=1, seed=0, device="meta")


@functools.cache
def with_chunked_loss(plain_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The transformers class with our loss, under its own name and module: what is saved names the original."""

    @functools.wraps(plain_class.forward)
    def forward(
        self: PreTrainedModel,
        input_ids: Tensor | None = None,
        *positional: Any,
        labels: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        scored: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        if scored is not None:
            return scores_of_pass(self, plain_class.forward, input_ids, *scored)
        if labels is None:
            return plain_class.forward(self, input_ids, *positional, **kwargs)
        assert not positional, "with labels, everything after input_ids is passed by name"
        routing = self.routing if self.training and reduction == "mean" else None
        if routing is not None:
            kwargs["output_router_logits"] = True
        loss_sum, num_labels, output = _loss_sums(self, plain_class, input_ids, labels, **kwargs)
        if reduction == "sum":
            return torch.stack((loss_sum, num_labels))
        loss = loss_sum / num_labels.clamp(min=1.0)
        if routing is None:
            return loss
        aux_loss = aux_loss_of(self, output)
        routing.add(aux_loss, output.router_logits)
        return loss + routing.coefficient * aux_loss if routing.coefficient else loss

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(__module__=plain_class.__module__, __qualname__=plain_class.__qualname__, forward=forward)
        namespace["__doc__"] = f"{plain_class.__name__} whose forward pass with `labels` [B, T] returns the loss alone."

    return types.new_class(plain_class.__name__, (plain_class,), exec_body=fill)


def _loss_sums(
    model: PreTrainedModel, plain_class: type[PreTrainedModel], input_ids: Tensor, labels: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor, Any]:
    """Sum of the cross-entropy in nats, number of labels, and what the model gave.

    `labels[:, t]` is the target of `input_ids[:, t]`, both [B, T].
    """
    if model.head_reason is not None:
        output = plain_class.forward(model, input_ids, use_cache=False, **kwargs)
        return *plain_loss_sums(output.logits, labels, model.real_vocab_size), output
    output = model.base_model(input_ids=input_ids, use_cache=False, **kwargs)
    head, way = model.get_output_embeddings(), model.head_way
    sums = chunked_cross_entropy(
        output.last_hidden_state.flatten(0, 1),
        head.weight,
        labels.flatten(),
        vocab_size=model.real_vocab_size,
        bias=getattr(head, "bias", None),
        chunk_tokens=way.chunk_tokens if way else None,
        fused=way is not None and way.fused,
        after=model.after_head,
    )
    return *sums, output


def plain_loss_sums(logits: Tensor, labels: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The same sum and count from logits [B, T, Vp] that exist already: what the chunked way is held against."""
    real = logits.float()[..., :vocab_size]
    loss = F.cross_entropy(real.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return loss, (labels != IGNORED_LABEL).sum(dtype=torch.float32)


def _check_ties(model: PreTrainedModel) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        missing = "embedding" if embedding is None else "head"
        raise ConfigError(
            f"{type(model).__name__} does not say where its {missing} is, which its training needs to know; set model.config.model_type to another"
        )
    tied = head.weight is embedding.weight
    wanted = bool(getattr(model.config, "tie_word_embeddings", False))
    if tied != wanted:
        raise ConfigError(
            f"model.config.tie_word_embeddings is {str(wanted).lower()}, but {type(model).__name__} made embedding and "
            f"head {'one parameter' if tied else 'two parameters'}; set it to {str(tied).lower()}"
        )


@torch.no_grad()
def _draw_row_of_padding(model: PreTrainedModel) -> None:
    """Lets the row of a padding id begin as all others do: transformers makes it zero, whose gradient behind a norm is enormous."""
    embedding = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None and not embedding.weight.is_meta:
        embedding.weight[embedding.padding_idx].normal_(std=float(embedding.weight.std()))


def generation_config(vocab_size: int, padded: int, eot_id: int | None) -> GenerationConfig:
    """A generation config that ends at `eot_id` and never yields an id from `vocab_size` on."""
    padding = list(range(vocab_size, padded)) or None
    return GenerationConfig(bos_token_id=eot_id, eos_token_id=eot_id, pad_token_id=eot_id, suppress_tokens=padding)


def _probe(model: PreTrainedModel) -> Tensor:
    """Two rows of tokens [2, 8] that differ in the last place only."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.real_vocab_size, (2, _PROBE_TOKENS), generator=generator)
    tokens[1] = tokens[0]
    tokens[1, -1] = (tokens[0, -1] + 1) % model.real_vocab_size
    return tokens.to(model.device)


@torch.no_grad()
def _check_causal(model: PreTrainedModel) -> None:
    """A position must not see the ones after it: some classes are causal only when a field says so."""
    logits = model.eval()(_probe(model)).logits[:, :-1].float()
    if not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise ConfigError(
            f"model.config.model_type {model.config.model_type!r} with these fields sees later tokens, so its loss "
            "would be cheated; set is_decoder: true where the class has it, or take a causal model (e.g. llama, gpt2)"
        )


@torch.no_grad()
def _find_after_head(model: PreTrainedModel) -> str | None:
    """Sets `model.after_head` to what it does to hidden @ weight.T; returns why it is none of what is known, or None."""
    model.eval()
    tokens = _probe(model)[:1]
    labels = tokens.roll(-1, dims=1)
    head = model.get_output_embeddings()
    head.weight.mul_(_PROBE_HEAD_SCALE)
    losses = []
    try:
        plain_sum, count = plain_loss_sums(model(tokens, use_cache=False).logits, labels, model.real_vocab_size)
        plain = float(plain_sum / count)
        for after in candidates(model.config):
            model.after_head = after
            losses.append(float(_loss_sums(model, type(model), tokens, labels)[0] / count))
            if math.isclose(plain, losses[-1], rel_tol=1e-4):
                return None
    except (AttributeError, AssertionError, TypeError) as error:
        return f"{type(model).__name__} does not give its last hidden state in the usual way ({error})"
    finally:
        head.weight.mul_(1 / _PROBE_HEAD_SCALE)
    model.after_head = NOTHING
    name = type(model).__name__
    return f"{name} changes its logits after the head (loss {plain:.6g} instead of {losses[0]:.6g} on a probe)"


@torch.no_grad()
def _why_not_routed(model: PreTrainedModel) -> str | None:
    """Why the routers' auxiliary loss must be asked of the model's own forward pass, which gives all logits with it; None when it need not."""
    if model.routing is None:
        return None
    tokens, name = _probe(model)[:1], type(model).__name__
    own = model.eval()(tokens, use_cache=False, output_router_logits=True).aux_loss
    try:
        ours = aux_loss_of(model, model.base_model(input_ids=tokens, use_cache=False, output_router_logits=True))
    except (AttributeError, TypeError, RuntimeError) as error:
        return f"{name} computes its routers' auxiliary loss in a way of its own ({error})"
    if math.isclose(float(own), float(ours), rel_tol=1e-5):
        return None
    return f"{name} computes its routers' auxiliary loss in a way of its own ({float(own):.6g} instead of {float(ours):.6g} on a probe)"


def _refusal(model_class: type[PreTrainedModel], error: Exception) -> str:
    """What to tell of a config that the class does not take."""
    said = " ".join(str(error).split()) or type(error).__name__
    kind = "" if isinstance(error, (ValueError, AssertionError)) else f"{type(error).__name__}: "
    return f"model.config is refused by {model_class.__name__}: {kind}{said.rstrip('.')}; change the fields it speaks of, or take another model_type"
