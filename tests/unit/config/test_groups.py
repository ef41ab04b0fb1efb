"""`optimizer.groups` in recipes: what may be written, how it is kept, and what is refused of it."""

import pytest

from tests.messages import refuses
from trainer.config.load import dump, flatten, kept_settings, load
from trainer.errors import ConfigError

TWO = '[{match: "lm_head|embed", lr: 1e-5, weight_decay: 0}, {match: layers.0, freeze: true}]'


def loaded(groups):
    return load("shakespeare", [f"optimizer.groups={groups}"])


def test_entries_are_kept_as_they_were_written(tmp_path):
    config = loaded(TWO).config
    plain = [{"match": "lm_head|embed", "lr": 1e-5, "weight_decay": 0.0}, {"match": "layers.0", "freeze": True}]
    assert flatten(config)["optimizer.groups"] == plain
    kept = tmp_path / "config.yaml"
    kept.write_text(dump(config))
    assert kept_settings(kept)["optimizer.groups"] == plain
    assert load(str(kept)).config.optimizer == config.optimizer
    assert flatten(load("shakespeare").config)["optimizer.groups"] == []


MISTAKES = {
    '[{match: "(", lr: 1e-5}]': ("optimizer.groups.match", "'('", "regular expression"),
    "[{match: x, lr: 0}]": ("optimizer.groups.lr", "greater than 0"),
    "[{match: x, weight_decay: -1}]": ("optimizer.groups.weight_decay", "-1"),
    "[{match: x, lr: 1e-4, freeze: true}]": ("optimizer.groups", "without lr and weight_decay", "freeze"),
    "[{lr: 1e-4}]": ("optimizer.groups.match", "not set", "each entry"),
    "[{match: x, lrr: 1e-4}]": ("optimizer.groups.lrr", "optimizer.groups.lr?"),
    "[{match: x, momentum: 1}]": ("optimizer.groups.momentum", "match, lr, weight_decay, freeze"),
    "[lm_head]": ("optimizer.groups", "'lm_head'", "match, lr, weight_decay, freeze"),
    "{match: lm_head}": ("optimizer.groups", "list"),
    "lm_head": ("optimizer.groups", "'lm_head'", "list"),
    "[{match: 0100}]": ("optimizer.groups", "0100", "64"),
}


@pytest.mark.parametrize("groups", MISTAKES)
def test_what_is_wrong_with_an_entry_is_told_with_its_place(groups, tmp_path):
    with refuses(ConfigError, "(override)", *MISTAKES[groups]):
        loaded(groups)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"base: shakespeare\noptimizer:\n  groups: {groups}\n")
    with refuses(ConfigError, "mine.yaml:3", *MISTAKES[groups]):
        load(str(recipe))
