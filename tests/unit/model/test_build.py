"""The built model is the transformers model, with one more way to be called."""

import copy
import logging
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.messages import logged, refuses
from tests.unit.model.families import family_model
from tests.unit.model.tiny import SHAPES, tiny_config, tiny_model
from trainer.contracts import IGNORED_LABEL
from trainer.errors import ConfigError
from trainer.model.after_head import NOTHING
from trainer.model.build import build_model, plain_loss_sums


def batch(vocab_size=257, rows=2, columns=24, seed=3):
    tokens = torch.randint(vocab_size, (rows, columns + 1), generator=torch.Generator().manual_seed(seed))
    labels = tokens[:, 1:].clone()
    labels[0, :5] = IGNORED_LABEL
    return tokens[:, :-1], labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vocab_size", [256, 257])
def test_the_loss_and_its_gradients_are_those_of_the_plain_logits(shape, vocab_size):
    model = tiny_model(shape, vocab_size)
    plain = copy.deepcopy(model)
    inputs, labels = batch(vocab_size)
    loss = model(inputs, labels=labels)
    loss.backward()
    loss_sum, count = plain_loss_sums(plain(inputs).logits, labels, vocab_size)
    (loss_sum / count).backward()
    assert loss.ndim == 0
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_sum / count, rtol=1e-6, atol=0)
    for (name, actual), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("shape", SHAPES)
def test_state_dict_class_and_logits_are_those_of_transformers(shape):
    model = tiny_model(shape).eval()
    plain = AutoModelForCausalLM.from_config(tiny_config(shape)).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model, type(plain))
    assert type(model).__name__ == type(plain).__name__
    plain.load_state_dict(model.state_dict())
    inputs, _ = batch()
    assert torch.equal(model(inputs).logits, plain(inputs).logits)


def test_the_sum_and_the_count_come_for_evaluation():
    model = tiny_model("llama")
    inputs, labels = batch()
    total, count = model(inputs, labels=labels, reduction="sum")
    assert count == (labels != IGNORED_LABEL).sum()
    torch.testing.assert_close(total / count, model(inputs, labels=labels))


def test_all_labels_ignored_is_a_loss_of_zero():
    model = tiny_model("llama")
    inputs, labels = batch()
    loss = model(inputs, labels=torch.full_like(labels, IGNORED_LABEL))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in model.parameters())


def test_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = tiny_model("llama", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    again, other = tiny_model("llama", seed=5), tiny_model("llama", seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_the_probe_at_build_time_leaves_the_head_bit_for_bit():
    # The probe scales the head; a head that came back changed would differ from one that was never scaled.
    model = tiny_model("llama", seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        plain = AutoModelForCausalLM.from_config(tiny_config("llama"))
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_embedding_and_head_are_one_parameter_exactly_when_the_config_ties_them(shape):
    model = tiny_model(shape)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_a_model_that_does_not_say_where_its_head_is_is_refused(monkeypatch):
    monkeypatch.setattr("transformers.LlamaForCausalLM.get_output_embeddings", lambda model: None)
    with pytest.raises(ConfigError, match="model.config.model_type"):
        tiny_model("llama", seed=5)


CHANGED = {
    "cohere": {"intermediate_size": 48},
    "granite": {"intermediate_size": 48, "logits_scaling": 8.0},
    "gemma2": {"intermediate_size": 48, "head_dim": 8, "num_key_value_heads": 2, "final_logit_softcapping": 0.5},
}
WIDTH = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}


@pytest.mark.parametrize("family", CHANGED)
def test_what_families_do_to_their_logits_is_found_and_done_in_the_chunked_way(family):
    model = tiny_model_of({"model_type": family, **WIDTH, **CHANGED[family]})
    assert model.head_reason is None
    assert model.after_head != NOTHING
    inputs, labels = batch()
    loss_sum, count = plain_loss_sums(model(inputs).logits, labels, 257)
    torch.testing.assert_close(model(inputs, labels=labels), loss_sum / count, rtol=1e-6, atol=0)


def test_a_family_that_does_something_else_to_its_logits_takes_the_plain_way_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr("trainer.model.build.candidates", lambda config: [NOTHING])
    with caplog.at_level(logging.INFO):
        model = tiny_model_of({"model_type": "gemma2", **WIDTH, **CHANGED["gemma2"]})
    assert model.head_reason
    logged(caplog, model.head_reason)
    inputs, labels = batch()
    loss_sum, count = plain_loss_sums(model(inputs).logits, labels, 257)
    torch.testing.assert_close(model(inputs, labels=labels), loss_sum / count)


@pytest.mark.parametrize("family", ["opt", "olmo2"])
def test_the_row_of_a_padding_id_begins_and_learns_like_all_others(family):
    model = family_model(family, tie_word_embeddings=False)
    embedding, padding = model.get_input_embeddings(), model.config.pad_token_id
    assert 0.3 < embedding.weight[padding].std() / embedding.weight.std() < 3
    tokens = torch.full((1, 8), padding)
    model(tokens, labels=tokens).backward()
    assert embedding.weight.grad[padding].count_nonzero() > 0


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gpt_neox", "phi"])
def test_families_with_a_plain_head_take_the_chunked_way(family):
    shape = {"model_type": family, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
    kv_heads = {} if family == "gpt_neox" else {"num_key_value_heads": 2}
    model = tiny_model_of(shape | kv_heads | {"intermediate_size": 48})
    assert model.head_reason is None


def tiny_model_of(fields):
    SHAPES["of-a-test"] = fields
    try:
        return tiny_model("of-a-test")
    finally:
        del SHAPES["of-a-test"]


def test_a_model_that_sees_later_tokens_is_refused():
    with refuses(ConfigError, "model.config.model_type", "'bert'"):
        tiny_model_of({"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4})


def test_what_only_the_model_class_refuses_is_a_config_error(monkeypatch):
    config = tiny_config("gpt2")
    config.n_head = 5
    with pytest.raises(ConfigError, match="GPT2LMHeadModel"):
        build_model(config, vocab_size=257, seed=1, device="cpu")


def test_what_ends_in_an_error_of_the_class_is_a_config_error():
    with refuses(ConfigError, "DbrxForCausalLM", "AttributeError", "model_type"):
        tiny_model_of({"model_type": "dbrx", "n_layers": 1, "d_model": 32, "n_heads": 4})


def test_a_tie_that_the_config_does_not_announce_is_refused(monkeypatch):
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.__init__

    def untied(self, config):
        real(self, config)
        self.lm_head.weight = torch.nn.Parameter(self.lm_head.weight.detach().clone())

    monkeypatch.setattr(LlamaForCausalLM, "__init__", untied)
    with refuses(ConfigError, "tie_word_embeddings", "true"):
        tiny_model("llama-tied")


def test_gradient_checkpointing_changes_no_gradient():
    inputs, labels = batch()
    gradients = []
    for checkpointing in (False, True):
        model = build_model(
            tiny_config("llama"), vocab_size=257, seed=1, device="cpu", gradient_checkpointing=checkpointing
        )
        assert model.is_gradient_checkpointing == checkpointing
        assert model.training
        model(inputs, labels=labels).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_padding_ids_are_suppressed_in_generation_and_only_where_there_are_any():
    model = tiny_model("llama")
    assert model.generation_config.suppress_tokens == list(range(257, 320))
    assert model.generation_config.eos_token_id == 256
    assert tiny_model("llama", 256).generation_config.suppress_tokens is None


def test_a_saved_model_is_opened_by_transformers_alone(tmp_path):
    model = tiny_model("llama-tied").eval()
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert opened.config.architectures == ["LlamaForCausalLM"]
    assert type(opened) is not type(model)
    inputs, _ = batch()
    assert torch.equal(opened(inputs).logits, model(inputs).logits)


def test_a_model_on_the_meta_device_has_shapes_and_no_weights():
    model = build_model(tiny_config("llama"), vocab_size=257, seed=1, device="meta")
    assert all(p.is_meta for p in model.parameters())


def test_gradient_checkpointing_is_asked_for_by_the_name_that_transformers_has_now():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = build_model(tiny_config("llama"), vocab_size=257, seed=1, device="cpu", gradient_checkpointing=True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_transformers_asks_us_whether_sequences_are_packed_and_is_told_that_none_is(shape, monkeypatch):
    from transformers import masking_utils

    asked = masking_utils.find_packed_sequence_indices
    assert asked.__module__ == "trainer.model.build"
    assert asked(torch.arange(4)[None]) is None
    calls = []
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: calls.append(position_ids))
    inputs, labels = batch()
    tiny_model(shape)(inputs, labels=labels)
    rows_in_order = torch.arange(inputs.shape[1]).expand(calls[-1].shape)
    assert calls and torch.equal(calls[-1], rows_in_order), "which is what it would have found"
