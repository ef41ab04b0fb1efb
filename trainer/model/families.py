"""The families whose shapes are known from the fields of their config, so that nothing has to be built to count them.

A family is an entry of FAMILIES: the fields that decide about shapes, with the defaults of its transformers config class, and what its
parameters are. tests/unit/model/test_shapes.py holds every entry against the model itself.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.model.shapes import Shapes, Weight, with_shares

Fields = Mapping[str, Any]
Listed = Iterator[tuple[str, tuple[int, ...]]]

SHAPELESS = re.compile(
    "drop|eps|initializer|init_std|rope|rotary|max_window|sliding|softcap|token_id|use_cache|aux_loss|jitter|_scalar|scale_attn|reorder|"
    "hidden_act|activation|summary|norm_topk|output_router|time_step_(scale|m|init|floor)|rescale|mambapy|associative|bidirectional|"
    "use_parallel_residual|pretraining_tp|alibi|original_max|layer_types"
)
"""Fields that change no shape, whatever they say."""


@dataclass(frozen=True)
class Family:
    """How the config of a family becomes shapes."""

    defaults: Fields
    """The fields that decide about shapes."""
    weights: Callable[[Any], Listed]
    """(fields) -> names and shapes of all but the head."""
    table: str = "model.embed_tokens.weight"
    positions: str = ""
    """The name of a table of positions."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields."""


def known_shapes(model_type: str, given: Fields, *, vocab_rows: int, sequence_length: int) -> Shapes | None:
    """The shapes of a model with these fields of its config; None where its family, or what a field does, is not known here.

    given       over the defaults of the family
    vocab_rows  of the table and the head, padding included
    """
    family = FAMILIES.get(model_type)
    if family is None:
        return None
    own = {family.aliases.get(key, key): value for key, value in given.items() if key != "model_type"}
    positions = int(own.pop("max_position_embeddings", family.defaults.get("max_position_embeddings", 0)))
    if any(key not in family.defaults and not SHAPELESS.search(key) for key in own):
        return None
    if any(not kind.endswith("attention") or kind.startswith("linear") for kind in own.get("layer_types") or ()):
        return None
    f = _Fields({**family.defaults, **own, "vocab": vocab_rows, "positions": max(positions, sequence_length)})
    tied = bool(f.tie_word_embeddings)
    tables = {family.table, family.positions}
    weights = [Weight(n, s, is_table=n in tables, is_head=tied and n == family.table) for n, s in family.weights(f)]
    if not tied:
        weights.append(Weight("lm_head.weight", (vocab_rows, f.get("word_embed_proj_dim") or f.h), is_head=True))
    return Shapes(
        model_type,
        with_shares(weights, f.get),
        num_layers=f.layers,
        hidden=f.h,
        attention_width=f.layers * f.q,
        query_width=f.q,
        scores_kept=2 * f.num_attention_heads if f.get("attn_logit_softcapping") else 0,
    )


class _Fields(dict[str, Any]):
    """The fields by name, and the sizes that follow from them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    @property
    def h(self) -> int:
        return int(self["hidden_size"])

    @property
    def layers(self) -> int:
        return int(self["num_hidden_layers"])

    @property
    def head(self) -> int:
        """Size of a head of attention; 0 without attention."""
        heads = self.get("num_attention_heads")
        return int(self.get("head_dim") or self.h // heads) if heads else 0

    @property
    def q(self) -> int:
        return int(self.get("num_attention_heads", 0)) * self.head

    @property
    def kv(self) -> int:
        return int(self.get("num_key_value_heads") or self["num_attention_heads"]) * self.head


def _linear(name: str, out: int, into: int, bias: Any = False) -> Listed:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def _layer_norm(name: str, width: int) -> Listed:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _gated(
    norms: tuple[str, ...] = _NORMS,
    qkv_bias: bool | None = None,
    head_norms: Callable[[_Fields], tuple[int, int]] | None = None,
    mlp: Callable[[_Fields, int, str], Listed] | None = None,
    fused: bool = False,
) -> Callable[[_Fields], Listed]:
    """Llama and its relatives: RMSNorm, attention with keys and values of fewer heads, a gated MLP.

    qkv_bias    whether queries, keys and values have one; None: as `attention_bias` says, the output too
    head_norms  widths of the norms of queries and keys
    mlp         that of a layer, by its number and the beginning of its names
    fused       whether queries, keys and values are one matrix, and gate and up another
    """

    def weights(f: _Fields) -> Listed:
        yield "model.embed_tokens.weight", (f.vocab, f.h)
        for number in range(f.layers):
            at = f"model.layers.{number}."
            bias = f.get("attention_bias") if qkv_bias is None else qkv_bias
            if fused:
                yield from _linear(f"{at}self_attn.qkv_proj", f.q + 2 * f.kv, f.h)
            else:
                yield from _linear(f"{at}self_attn.q_proj", f.q, f.h, bias)
                yield from _linear(f"{at}self_attn.k_proj", f.kv, f.h, bias)
                yield from _linear(f"{at}self_attn.v_proj", f.kv, f.h, bias)
            yield from _linear(f"{at}self_attn.o_proj", f.h, f.q, f.get("attention_bias"))
            if head_norms:
                queries, keys = head_norms(f)
                yield f"{at}self_attn.q_norm.weight", (queries,)
                yield f"{at}self_attn.k_norm.weight", (keys,)
            yield from (mlp or _fused_mlp if fused else mlp or _mlp)(f, number, at)
            for norm in norms:
                yield f"{at}{norm}.weight", (f.h,)
        yield "model.norm.weight", (f.h,)

    return weights


def _mlp(f: _Fields, _number: int, at: str) -> Listed:
    for name, out, into in (
        ("gate", f.intermediate_size, f.h),
        ("up", f.intermediate_size, f.h),
        ("down", f.h, f.intermediate_size),
    ):
        yield from _linear(f"{at}mlp.{name}_proj", out, into, f.get("mlp_bias"))


def _fused_mlp(f: _Fields, _number: int, at: str) -> Listed:
    yield from _linear(f"{at}mlp.gate_up_proj", 2 * f.intermediate_size, f.h)
    yield from _linear(f"{at}mlp.down_proj", f.h, f.intermediate_size)


def _experts(f: _Fields, at: str, number: int, width: int) -> Listed:
    yield f"{at}mlp.gate.weight", (number, f.h)
    yield f"{at}mlp.experts.gate_up_proj", (number, 2 * width, f.h)
    yield f"{at}mlp.experts.down_proj", (number, f.h, width)


def _mixtral_mlp(f: _Fields, _number: int, at: str) -> Listed:
    return _experts(f, at, f.num_local_experts, f.intermediate_size)


def _qwen3_moe_mlp(f: _Fields, number: int, at: str) -> Listed:
    has_experts = (
        number not in (f.mlp_only_layers or ()) and f.num_experts and (number + 1) % f.decoder_sparse_step == 0
    )
    return _experts(f, at, f.num_experts, f.moe_intermediate_size) if has_experts else _mlp(f, number, at)


def _gpt2(f: _Fields) -> Listed:
    inner = f.n_inner or 4 * f.h
    yield "transformer.wte.weight", (f.vocab, f.h)
    yield "transformer.wpe.weight", (f.positions, f.h)
    for number in range(f.layers):
        at = f"transformer.h.{number}."
        yield from _layer_norm(f"{at}ln_1", f.h)
        yield from _layer_norm(f"{at}ln_2", f.h)
        for name, into, out in (
            ("attn.c_attn", f.h, 3 * f.h),
            ("attn.c_proj", f.h, f.h),
            ("mlp.c_fc", f.h, inner),
            ("mlp.c_proj", inner, f.h),
        ):
            yield f"{at}{name}.weight", (into, out)  # the other way round than a linear layer's
            yield f"{at}{name}.bias", (out,)
    yield from _layer_norm("transformer.ln_f", f.h)


def _gpt_neox(f: _Fields) -> Listed:
    yield "gpt_neox.embed_in.weight", (f.vocab, f.h)
    for number in range(f.layers):
        at = f"gpt_neox.layers.{number}."
        yield from _layer_norm(f"{at}input_layernorm", f.h)
        yield from _layer_norm(f"{at}post_attention_layernorm", f.h)
        yield from _linear(f"{at}attention.query_key_value", 3 * f.h, f.h, f.attention_bias)
        yield from _linear(f"{at}attention.dense", f.h, f.h, f.attention_bias)
        yield from _linear(f"{at}mlp.dense_h_to_4h", f.intermediate_size, f.h, True)
        yield from _linear(f"{at}mlp.dense_4h_to_h", f.h, f.intermediate_size, True)
    yield from _layer_norm("gpt_neox.final_layer_norm", f.h)


def _opt(f: _Fields) -> Listed:
    embedded = f.word_embed_proj_dim or f.h
    yield "model.decoder.embed_tokens.weight", (f.vocab, embedded)
    yield "model.decoder.embed_positions.weight", (f.positions + 2, f.h)
    if embedded != f.h:
        yield "model.decoder.project_out.weight", (embedded, f.h)
        yield "model.decoder.project_in.weight", (f.h, embedded)
    if f.do_layer_norm_before:
        yield from _layer_norm("model.decoder.final_layer_norm", f.h)
    for number in range(f.layers):
        at = f"model.decoder.layers.{number}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{at}self_attn.{name}", f.h, f.h, f.enable_bias)
        yield from _layer_norm(f"{at}self_attn_layer_norm", f.h)
        yield from _linear(f"{at}fc1", f.ffn_dim, f.h, f.enable_bias)
        yield from _linear(f"{at}fc2", f.h, f.ffn_dim, f.enable_bias)
        yield from _layer_norm(f"{at}final_layer_norm", f.h)


def _falcon(f: _Fields) -> Listed:
    if f.new_decoder_architecture:
        qkv = ((f.num_kv_heads or f.num_attention_heads) * 2 + f.num_attention_heads) * f.head
    else:
        qkv = f.h + 2 * f.head if f.multi_query else 3 * f.h
    norms = ["input_layernorm"]
    if not f.parallel_attn:
        norms.append("post_attention_layernorm")
    elif f.num_ln_in_parallel_attn == 2 or (f.num_ln_in_parallel_attn is None and f.new_decoder_architecture):
        norms = ["ln_attn", "ln_mlp"]
    inner = f.ffn_hidden_size or 4 * f.h
    yield "transformer.word_embeddings.weight", (f.vocab, f.h)
    for number in range(f.layers):
        at = f"transformer.h.{number}."
        yield from _linear(f"{at}self_attention.query_key_value", qkv, f.h, f.bias)
        yield from _linear(f"{at}self_attention.dense", f.h, f.h, f.bias)
        yield from _linear(f"{at}mlp.dense_h_to_4h", inner, f.h, f.bias)
        yield from _linear(f"{at}mlp.dense_4h_to_h", f.h, inner, f.bias)
        for norm in norms:
            yield from _layer_norm(f"{at}{norm}", f.h)
    yield from _layer_norm("transformer.ln_f", f.h)


def _mamba(f: _Fields) -> Listed:
    inner = int(f.expand * f.h)
    rank = math.ceil(f.h / 16) if f.time_step_rank in (None, "auto") else f.time_step_rank
    yield "backbone.embeddings.weight", (f.vocab, f.h)
    for number in range(f.layers):
        at = f"backbone.layers.{number}."
        yield f"{at}norm.weight", (f.h,)
        yield f"{at}mixer.A_log", (inner, f.state_size)
        yield f"{at}mixer.D", (inner,)
        yield f"{at}mixer.conv1d.weight", (inner, 1, f.conv_kernel)
        if f.use_conv_bias:
            yield f"{at}mixer.conv1d.bias", (inner,)
        yield from _linear(f"{at}mixer.in_proj", 2 * inner, f.h, f.use_bias)
        yield from _linear(f"{at}mixer.x_proj", rank + 2 * f.state_size, inner)
        yield from _linear(f"{at}mixer.dt_proj", inner, rank, True)
        yield from _linear(f"{at}mixer.out_proj", f.h, inner, f.use_bias)
    yield "backbone.norm_f.weight", (f.h,)


def _sizes(hidden: int, layers: int, heads: int, intermediate: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": intermediate, "tie_word_embeddings": tied, **more}


_KV: dict[str, Any] = {"num_key_value_heads": None}
_GEMMA_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_GEMMA = _sizes(2304, 26, 8, 9216, True, num_key_value_heads=4, head_dim=256, attention_bias=False)
_GPT2_NAMES = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
_GPT2_NAMES["n_positions"] = "max_position_embeddings"


def _each_head(f: _Fields) -> tuple[int, int]:
    return f.head, f.head


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        _sizes(768, 12, 12, 0, True, n_inner=None, max_position_embeddings=1024),
        _gpt2,
        "transformer.wte.weight",
        "transformer.wpe.weight",
        _GPT2_NAMES,
    ),
    "llama": Family(_sizes(4096, 32, 32, 11008, **_KV, head_dim=None, attention_bias=False, mlp_bias=False), _gated()),
    "mistral": Family(_sizes(4096, 32, 32, 14336, num_key_value_heads=8, head_dim=None), _gated()),
    "smollm3": Family(
        _sizes(2048, 36, 16, 11008, True, num_key_value_heads=4, attention_bias=False, mlp_bias=False), _gated()
    ),
    "qwen2": Family(_sizes(4096, 32, 32, 22016, num_key_value_heads=32), _gated(qkv_bias=True)),
    "qwen3": Family(
        _sizes(4096, 32, 32, 22016, num_key_value_heads=32, head_dim=128, attention_bias=False),
        _gated(head_norms=_each_head),
    ),
    "olmo2": Family(
        _sizes(4096, 32, 32, 11008, **_KV, attention_bias=False),
        _gated(("post_attention_layernorm", "post_feedforward_layernorm"), head_norms=lambda f: (f.q, f.kv)),
    ),
    "gemma2": Family({**_GEMMA, "attn_logit_softcapping": 50.0}, _gated(_GEMMA_NORMS)),
    "gemma3_text": Family(_GEMMA, _gated(_GEMMA_NORMS, head_norms=_each_head)),
    "phi3": Family(_sizes(3072, 32, 32, 8192, **_KV), _gated(fused=True)),
    "mixtral": Family(
        _sizes(4096, 32, 32, 14336, num_key_value_heads=8, head_dim=None, num_local_experts=8, num_experts_per_tok=2),
        _gated(mlp=_mixtral_mlp),
        aliases={"num_experts": "num_local_experts"},
    ),
    "qwen3_moe": Family(
        _sizes(
            2048,
            24,
            32,
            6144,
            num_key_value_heads=4,
            head_dim=None,
            attention_bias=False,
            decoder_sparse_step=1,
            moe_intermediate_size=768,
            num_experts_per_tok=8,
            num_experts=128,
            mlp_only_layers=None,
        ),
        _gated(head_norms=_each_head, mlp=_qwen3_moe_mlp),
        aliases={"num_local_experts": "num_experts"},
    ),
    "gpt_neox": Family(_sizes(6144, 44, 64, 24576, attention_bias=True), _gpt_neox, "gpt_neox.embed_in.weight"),
    "opt": Family(
        {
            **_sizes(768, 12, 12, 0, True, max_position_embeddings=2048),
            **{"ffn_dim": 3072, "word_embed_proj_dim": None, "do_layer_norm_before": True, "enable_bias": True},
        },
        _opt,
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
    ),
    "falcon": Family(
        {
            **_sizes(4544, 32, 71, 0, True, num_ln_in_parallel_attn=None, num_kv_heads=None, ffn_hidden_size=None),
            **{"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False},
        },
        _falcon,
        "transformer.word_embeddings.weight",
    ),
    "mamba": Family(
        {
            **{"hidden_size": 768, "state_size": 16, "num_hidden_layers": 32, "expand": 2, "conv_kernel": 4},
            **{"use_bias": False, "use_conv_bias": True, "time_step_rank": None, "tie_word_embeddings": True},
        },
        _mamba,
        "backbone.embeddings.weight",
    ),
}
