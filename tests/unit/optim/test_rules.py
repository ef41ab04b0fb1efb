"""`optimizer.groups`: what each entry matches, what is said and refused of it, and that what is frozen costs nothing and never moves."""

import copy

import pytest
import torch

from tests.messages import refuses, says
from tests.unit.model.tiny import SHAPES, tiny_config, tiny_model
from trainer.config.groups import ParameterGroup
from trainer.config.schema import OptimizerConfig
from trainer.errors import ConfigError
from trainer.model.build import build_model
from trainer.optim.build import build_optimizer, step_if_finite
from trainer.optim.groups import named_groups, rates_by_tag, set_learning_rate
from trainer.optim.rules import descriptions, followers, former_groups, freeze, frozen_names, labels
from trainer.run.memory import least_bytes

NAMES = ["adamw", "muon"]
LOWER = {"match": r"embed|wte|wpe|layers\.0\.|h\.0\.", "freeze": True}
"""What a person freezes first: the embeddings and the first block, of llama and of gpt2."""


def settings(*rules, **others):
    return OptimizerConfig(groups=list(rules), **others)


def of_rules(model, *rules, **others):
    """The optimizer of a model with these entries, frozen parameters and all."""
    wanted = settings(*rules, **others)
    freeze(model, wanted.groups)
    return build_optimizer(model, wanted)


def losses(model, optimizer, steps, forward=None):
    found = []
    for step in range(steps):
        tokens = torch.randint(257, (2, 17), generator=torch.Generator().manual_seed(step))
        loss = (model if forward is None else forward)(tokens[:, :-1], labels=tokens[:, 1:].contiguous())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step_if_finite(optimizer, norm)
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_the_first_entry_that_is_found_counts_and_others_follow_none():
    model = tiny_model("llama")
    rules = settings({"match": "norm"}, {"match": r"layers\.0", "lr": 1e-4}, {"match": "lm_head|embed"}).groups
    found = {name: follower.rule for name, follower in followers(model, rules).items()}
    assert found["model.layers.0.input_layernorm.weight"] == 0
    assert found["model.layers.0.mlp.up_proj.weight"] == 1
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == 2
    assert found["model.layers.1.mlp.up_proj.weight"] is None


def test_a_tied_head_is_found_under_either_name():
    model = tiny_model("gpt2")
    for name in ("lm_head", "wte"):
        optimizer = of_rules(copy.deepcopy(model), {"match": name, "lr": 1e-5})
        (group,) = [group for group in optimizer.param_groups if "label" in group]
        assert group["param_names"] == ["transformer.wte.weight"]
    says(descriptions(model, settings({"match": "lm_head"}))[0], "transformer.wte.weight", "lm_head.weight")


@pytest.mark.parametrize("name", NAMES)
def test_each_trainable_parameter_is_in_one_group_with_its_entry_s_rate_and_decay(name):
    model = tiny_model("llama")
    rules = {"match": "lm_head|embed", "lr": 1e-5, "weight_decay": 0}, {"match": r"layers\.1", "lr": 3e-4}
    optimizer = of_rules(model, *rules, LOWER, name=name, lr=6e-4, muon_lr=0.02, muon_weight_decay=0.3)
    groups = {group["name"]: group for group in optimizer.param_groups}
    names = [each for group in optimizer.param_groups for each in group["param_names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [
        id(dict(model.named_parameters())[n]) for n in names
    ]
    head, hidden, norms = (groups[each] for each in ("lm_head_embed/embeddings", "layers_1/hidden", "layers_1/vectors"))
    assert (head["peak_lr"], head["weight_decay"]) == (1e-5, 0.0)
    assert hidden["peak_lr"] == pytest.approx(0.01 if name == "muon" else 3e-4, rel=1e-12)
    assert hidden["weight_decay"] == (0.3 if name == "muon" else 0.1)
    assert (norms["peak_lr"], norms["weight_decay"]) == (3e-4, 0.0)
    assert groups["vectors"]["peak_lr"] == 6e-4
    set_learning_rate(optimizer, 0.5)
    drawn = rates_by_tag(optimizer)
    assert drawn["optim/lr/lm_head_embed"] == 5e-6 and drawn["optim/lr/layers_1"] == 1.5e-4
    assert ("optim/lr/layers_1_muon" in drawn) == (name == "muon")


def test_without_entries_nothing_is_drawn_or_said_besides():
    model = tiny_model("llama")
    assert rates_by_tag(of_rules(model)) == {} and descriptions(model, settings()) == []


def test_labels_can_stand_in_tags_and_tell_entries_apart():
    matches = ["lm_head|embed", "lm_head.embed", r"layers\.(0|1)\.", ".*"]
    found = labels([ParameterGroup(match=match) for match in matches])
    assert found == ["lm_head_embed_1", "lm_head_embed_2", "layers_0_1", "all"]


def test_what_matched_what_is_said_with_its_rates():
    model = tiny_model("llama")
    wanted = settings(
        {"match": "lm_head", "lr": 1e-5, "weight_decay": 0}, {"match": r"layers\.1", "lr": 3e-4}, LOWER, name="muon"
    )
    freeze(model, wanted.groups)
    head, upper, lower, others = descriptions(model, wanted)
    says(head, "lm_head", "1 tensor", "lm_head.weight", "lr 1e-05", "weight decay 0")
    says(upper, "layers", "lr 0.0003 (adamw)", "lr 0.01 (muon: muon_lr times 0.5")
    says(lower, "model.embed_tokens.weight", "frozen")
    says(others, "all others", "model.norm.weight", "lr 0.0006")


def test_how_the_rate_came_about_is_said_where_an_entry_holds_muon_s_matrices_alone():
    (line, _) = descriptions(tiny_model("llama"), settings({"match": "mlp", "lr": 3e-4}, name="muon"))
    says(line, "lr 0.01", "muon_lr times 0.5", "0.0003 is optimizer.lr times 0.5")


REFUSED = {
    "matches nothing": ([{"match": "lm_haed"}], ("'lm_haed'", "lm_head.weight", "take it out")),
    "taken by an earlier": (
        [{"match": "lm"}, {"match": "lm_head"}],
        ("'lm_head'", "('lm')", "lm_head.weight", "put it before"),
    ),
    "all frozen": ([{"match": "", "freeze": True}], ("freezes all", "leave freeze out")),
    "decay of vectors": (
        [{"match": "norm", "weight_decay": 0.1}],
        ("'norm'", "weight_decay 0.1", "leave weight_decay out"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_entry_that_does_nothing_is_a_mistake(case):
    rules, tokens = REFUSED[case]
    model = tiny_model("llama")
    with refuses(ConfigError, "optimizer.groups", *tokens):
        freeze(model, settings(*rules).groups)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_several_mistakes_are_told_at_once():
    with refuses(ConfigError, "'a_typo'", "'another'"):
        freeze(tiny_model("llama"), settings({"match": "a_typo"}, {"match": "another"}).groups)


WAYS = [
    *((shape, name, "plain") for shape in SHAPES for name in NAMES),
    ("gpt2", "adamw", "recomputed"),
    ("llama", "muon", "recomputed"),
    pytest.param("llama", "adamw", "compiled", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("shape", "name", "way"), WAYS)
def test_what_is_frozen_gets_no_gradient_and_no_moments_and_never_moves(shape, name, way):
    model = build_model(
        tiny_config(shape), vocab_size=257, seed=1, device="cpu", gradient_checkpointing=way == "recomputed"
    )
    optimizer = of_rules(model, LOWER, name=name, lr=0.01)
    frozen = frozen_names(model, settings(LOWER).groups)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    forward = torch.compile(model, backend="aot_eager") if way == "compiled" else model
    seen = []
    hooks = [p.register_hook(lambda g, n=n: seen.append(n)) for n, p in model.named_parameters() if p.requires_grad]
    losses(model, optimizer, 2, forward)
    assert len(hooks) == len(set(seen))
    for each, parameter in model.named_parameters():
        assert torch.equal(parameter, before[each]) == (each in frozen), each
        assert (parameter in optimizer.state) == (each not in frozen), each
        assert each not in frozen or parameter.grad is None


def test_moments_take_the_memory_of_what_is_trained_alone():
    model = tiny_model("llama")
    optimizer = of_rules(model, LOWER)
    losses(model, optimizer, 1)
    moments = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.ndim)
    total = sum(parameter.numel() for parameter in model.parameters())
    still = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert moments == 2 * 4 * (total - still) < 2 * 4 * total
    shape = {"micro_batch": 1, "sequence_length": 16, "precision": "no"}
    whole, part = least_bytes(tiny_model("llama"), **shape), least_bytes(model, **shape)
    assert whole - part == 8 * still


def test_a_frozen_head_costs_no_gradient_of_its_weight_and_the_others_are_what_they_were():
    whole, part = tiny_model("llama"), tiny_model("llama")
    freeze(part, settings({"match": "lm_head|embed", "freeze": True}).groups)
    tokens = torch.arange(34).reshape(2, 17)
    for model in (whole, part):
        model(tokens[:, :-1], labels=tokens[:, 1:].contiguous()).backward()
    assert part.lm_head.weight.grad is None and part.model.embed_tokens.weight.grad is None
    for (name, ours), theirs in zip(part.named_parameters(), whole.parameters(), strict=True):
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("name", NAMES)
def test_entries_that_change_nothing_change_no_bit(name):
    plain, grouped = tiny_model("llama"), tiny_model("llama")
    rules = {"match": "lm_head|embed"}, {"match": "norm"}
    assert losses(plain, of_rules(plain, name=name), 3) == losses(grouped, of_rules(grouped, *rules, name=name), 3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), grouped.parameters(), strict=True))


def test_groups_of_a_version_without_entries_hold_what_is_frozen_now_too():
    model = tiny_model("llama")
    before = {kind: list(named) for kind, named in named_groups(model).items()}
    rules = settings(LOWER).groups
    freeze(model, rules)
    assert former_groups(model, rules) == before != {kind: list(named) for kind, named in named_groups(model).items()}
