import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.strategies import configs, rates, texts
from trainer.config.load import dump, flatten, load, load_resolved


@settings(deadline=None)
@given(configs())
def test_a_dumped_config_loads_as_itself(config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump(config), encoding="utf-8")
        loaded = load(str(path))
        assert loaded.config == config
        assert load_resolved(path) == config
        assert loaded.origins.keys() == flatten(config).keys()


SETTINGS = {
    "seed": st.integers(0, 10**6),
    "optimizer.lr": rates,
    "deterministic": st.booleans(),
    "evaluation.prompt": texts,
    "resume_from_checkpoint": texts,
    "checkpoint.keep_best": st.integers(0, 9),
    "safety.max_bad_steps": st.integers(1, 99),
    "data.validation": st.just([]),
    "optimizer.betas": st.just([0.5, 0.75]),
}
changes = st.fixed_dictionaries({}, optional=SETTINGS)


def typed(value):
    """A value as a person types it: text as it is, anything else as YAML."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


@settings(deadline=None, max_examples=50)
@given(changes)
def test_an_override_changes_what_it_names_and_nothing_else(changed):
    changed = {key: value for key, value in changed.items() if value not in ("", "~", "null")}  # as YAML: no value
    before = flatten(load("shakespeare").config)
    loaded = load("shakespeare", [f"{key}={typed(value)}" for key, value in changed.items()])
    assert flatten(loaded.config) == {**before, **changed}
    assert {key for key, origin in loaded.origins.items() if origin == "override"} == changed.keys()
