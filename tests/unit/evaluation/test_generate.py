"""What a model writes: seeded, within the vocabulary and the positions, the same alone and beside others, and without a trace in the random state."""

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from tests.accelerators import forget_accelerator
from tests.messages import refuses
from tests.unit.model import families as tiny_families
from tests.unit.model.tiny import tiny_model
from trainer.errors import ConfigError
from trainer.evaluation.generate import Limits, Row, Sampling, Written, choose, generate, num_positions
from trainer.model.build import build_model
from trainer.model.resolve import resolve

PROMPT = [5, 6, 7]
PROMPTS = [PROMPT, [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [40, 41, 42, 43, 44]]
GREEDY, DRAWN = Sampling(temperature=0.0), Sampling(temperature=1.5, top_k=40, top_p=0.9)

FAMILIES = {
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "dropout": 0.0,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "openai-gpt": {
        "model_type": "openai-gpt",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mistral": {
        "model_type": "mistral",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "sliding_window": 6,
        "head_dim": 8,
    },
}
"""Besides the tiny shapes: positions with an offset, none but in the attention, no cache, a cache that forgets."""


@pytest.fixture(scope="module", params=["gpt2", "llama-tied"])
def model(request):
    return tiny_model(request.param)


def write(model, *rows, **settings):
    listener = settings.pop("listener", None)
    limits = Limits(**({"max_new_tokens": 12, "sequence_length": 40, "vocab_size": 257} | settings))
    return generate(model, rows, limits, listener)


def tokens_of(model, prompt=PROMPT, sampling=DRAWN, seed=0, sample=0, **settings):
    (written,) = write(model, Row(prompt_ids=prompt, sampling=sampling, seed=seed, sample=sample), **settings)
    return written.tokens


def likeliest(model, prompt, num_tokens):
    """The same by the plain way: the whole text through the model for every token."""
    tokens, was_training = list(prompt), model.training
    model.eval()
    with torch.no_grad():
        for _ in range(num_tokens):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1, :257].argmax()))
    model.train(was_training)
    return tokens[len(prompt) :]


# The text


def test_a_seed_gives_the_same_text_and_leaves_the_random_state_alone(model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tokens_of(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert tokens_of(model, seed=3) == first != tokens_of(model, seed=4)
    assert len(first) == 12
    assert model.training


def test_a_model_that_draws_also_in_evaluation_mode_leaves_no_trace_either(model, monkeypatch):
    monkeypatch.setattr(
        model, "forward", lambda *args, plain=model.forward, **kwargs: torch.rand(3) is None or plain(*args, **kwargs)
    )
    state = torch.get_rng_state()
    tokens_of(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_position_goes_through_the_model_once_and_only_the_last_gives_logits(model, monkeypatch):
    shapes = []

    def forward(*args, plain=model.forward, **kwargs):
        output = plain(*args, **kwargs)
        shapes.append((kwargs["input_ids"].shape[1], output.logits.shape[1]))
        return output

    monkeypatch.setattr(model, "forward", forward)
    tokens_of(model, [1] * 9)
    assert shapes == [(9, 1)] + [(1, 1)] * 11


def test_the_samples_of_a_seed_are_different_texts(model):
    assert len({tuple(tokens_of(model, sample=sample)) for sample in range(4)}) == 4


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_a_row_is_what_it_would_be_alone(model, sampling):
    rows = [
        Row(prompt_ids=prompt, sampling=sampling, seed=7, sample=number % 2) for number, prompt in enumerate(PROMPTS)
    ]
    together = write(model, *rows)
    assert [written.tokens for written in together] == [write(model, row)[0].tokens for row in rows]


def test_rows_that_choose_differently_stand_in_one_batch(model):
    rows = [
        Row(prompt_ids=PROMPT, sampling=sampling) for sampling in (GREEDY, DRAWN, Sampling(temperature=3.0), GREEDY)
    ]
    together = [written.tokens for written in write(model, *rows)]
    assert together == [tokens_of(model, sampling=row.sampling) for row in rows]
    assert together[0] == together[3]
    assert together[0] != together[1] != together[2]


FURTHER = [
    pytest.param(family, marks=() if family in ("gpt2", "llama") else pytest.mark.long)
    for family in tiny_families.FAMILIES
    if family not in FAMILIES
]


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_every_family_writes_what_the_plain_way_writes(family):
    fields = FAMILIES.get(family) or {"model_type": family, **tiny_families.FAMILIES[family]}
    config = resolve(None, fields, vocab_size=257, sequence_length=40, eot_id=256)
    model = build_model(config, vocab_size=257, seed=1, device="cpu")
    with torch.no_grad():  # fresh weights say the same whatever was read
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    rows = [Row(prompt_ids=prompt, sampling=GREEDY) for prompt in PROMPTS]
    assert [written.tokens for written in write(model, *rows)] == [likeliest(model, prompt, 12) for prompt in PROMPTS]


def test_weights_in_bf16_stay_in_bf16():
    model = tiny_model("llama").to(torch.bfloat16)
    assert len(tokens_of(model)) == 12
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_padding_ids_never_come_even_when_they_are_the_likeliest():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[257:] = model.lm_head.weight[:257].norm() * 10
        model.lm_head.weight[257:] *= torch.sign(torch.randn(63, 32, generator=torch.Generator().manual_seed(0)))
    hidden_ids = model.eval()(torch.tensor([PROMPT])).logits.argmax(-1)
    assert (hidden_ids >= 257).any(), "the test wants padding to be likely"
    for temperature in (0.0, 1.0, 5.0):
        assert max(tokens_of(model, sampling=Sampling(temperature=temperature))) < 257


def test_a_model_that_accelerate_prepared_for_bf16_writes():
    forget_accelerator()
    try:
        model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(tiny_model("llama"))
        assert tokens_of(model)
        assert model.training
    finally:
        forget_accelerator()


# Its end


def test_a_row_ends_with_the_sequence_it_was_trained_on_and_says_so(model):
    short, long = [1] * 30, [2] * 36
    written = write(model, Row(prompt_ids=short), Row(prompt_ids=long), max_new_tokens=8)
    assert [(len(row.tokens), row.ended_by) for row in written] == [(8, "max_new_tokens"), (4, "sequence_length")]


def test_a_prompt_that_leaves_no_position_is_refused(model):
    with refuses(ConfigError, "40 tokens", "sequences of 40"):
        tokens_of(model, [1] * 40)


def test_an_end_of_text_ends_its_row_only_and_is_no_token_of_it(model):
    rows = [Row(prompt_ids=prompt, sampling=GREEDY) for prompt in PROMPTS]
    free = write(model, *rows)
    end = free[0].tokens[4]
    ended = write(model, *rows, eot_id=end)
    for before, after in zip(free, ended):
        until = before.tokens.index(end) if end in before.tokens else None
        assert after == Written(before.tokens[:until], "max_new_tokens" if until is None else "end_of_text")
    assert ended[0].ended_by == "end_of_text"


class Heard:
    """A listener that stops a row after so many tokens."""

    def __init__(self, most):
        self.most, self.tokens, self.ends = most, {}, []

    def token(self, row, token):
        self.tokens.setdefault(row, []).append(token)
        return len(self.tokens[row]) < self.most.get(row, 99)

    def end(self, row, ended_by):
        self.ends.append((row, ended_by))


def test_all_ranks_go_on_with_the_tokens_that_they_agree_on(model):
    row, limits = Row(prompt_ids=PROMPT, sampling=GREEDY), Limits(max_new_tokens=3, sequence_length=32, vocab_size=64)
    written = generate(model, [row], limits, agree_on=lambda tokens: [7] * len(tokens))
    assert written == [Written([7, 7, 7], "max_new_tokens")]


def test_a_listener_hears_every_token_in_time_and_may_end_a_row(model):
    heard = Heard({1: 3})
    written = write(
        model, *(Row(prompt_ids=PROMPT, sample=number) for number in range(3)), max_new_tokens=5, listener=heard
    )
    assert [heard.tokens[row] for row in range(3)] == [row.tokens for row in written]
    assert heard.ends == [(1, "stop"), (0, "max_new_tokens"), (2, "max_new_tokens")]
    assert [row.ended_by for row in written] == ["max_new_tokens", "stop", "max_new_tokens"]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling()])
def test_weights_that_are_no_numbers_end_a_row_and_raise_nothing(sampling):
    model = tiny_model("llama")
    torch.nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, float("nan"))
    assert write(model, Row(prompt_ids=PROMPT, sampling=sampling)) == [Written([], "not_finite")]


def test_a_prompt_outside_the_vocabulary_or_empty_is_a_programming_error(model):
    for prompt in ([], [257], [-1]):
        with pytest.raises(AssertionError):
            tokens_of(model, prompt)
    for nothing in ({"max_new_tokens": 0}, {"rows": ()}):
        with pytest.raises(AssertionError):
            write(model, *nothing.pop("rows", [Row(prompt_ids=PROMPT)]), **nothing)


def test_positions_are_those_of_the_config_or_as_many_as_anyone_asks_for(model):
    assert num_positions(model.config) == model.config.max_position_embeddings
    assert num_positions(object()) == 2**31


# The choice of a token


LOGITS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))


def chosen(sampling, logits=LOGITS):
    """The share of each id, over evenly spaced numbers."""
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    return (torch.bincount(choose(logits.expand(1000, -1), sampling, uniforms), minlength=4) / 1000).tolist()


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.0), [0, 1, 0, 0]),
        (Sampling(temperature=1e-45, top_k=3), [0, 1, 0, 0]),
        (Sampling(temperature=1e6), [0.25, 0.25, 0.25, 0.25]),
        (Sampling(temperature=0.5), [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        (Sampling(top_k=1), [0, 1, 0, 0]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=99), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.0), [0, 1, 0, 0]),
        (Sampling(top_p=0.45), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=2, top_p=0.5), [0, 1, 0, 0]),
        (Sampling(min_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(min_p=1.0), [0, 1, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(sampling, shares):
    assert chosen(sampling) == pytest.approx(shares, abs=0.002)


@given(
    st.lists(st.floats(-100, 100) | st.just(float("-inf")), min_size=1, max_size=6),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_only_a_token_that_may_come_comes(logits, uniform, top_p, min_p):
    token = int(
        choose(torch.tensor([logits]), Sampling(top_p=top_p, min_p=min_p), torch.tensor([uniform], dtype=torch.float64))
    )
    if max(logits) == float("-inf"):
        assert token == -1
    else:
        assert logits[token] > float("-inf")
        assert logits[token] >= max(logits) - 110
        assert min_p < 0.999 or logits[token] > max(logits) - 0.1


def test_what_stands_exactly_at_the_share_is_left_out():
    halves = torch.zeros(1, 2).expand(10, -1)
    assert len(set(choose(halves, Sampling(top_p=0.5), torch.arange(10, dtype=torch.float64) / 10).tolist())) == 1


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_a_row_without_finite_logits_chooses_nothing_and_the_others_do(sampling):
    logits = torch.tensor([[0.0, 9.0], [float("nan"), 1.0], [float("inf"), 1.0], [float("-inf"), 9.0]])
    assert choose(logits, sampling, torch.full((4,), 0.5, dtype=torch.float64)).tolist() == [1, -1, -1, 1]
