"""The URL of a webhook never enters a config."""

import pytest

from tests.launching import write_recipe
from tests.messages import refuses
from trainer.config.load import dump, flatten, load
from trainer.config.unattended import AlertsConfig
from trainer.errors import ConfigError

URL = "https://hooks.example.org/T0/SECRET"


def test_a_url_in_a_recipe_goes_another_way_than_the_settings(tmp_path):
    loaded = load(str(write_recipe(tmp_path, alerts={"webhook": URL})))
    assert loaded.webhook == URL and loaded.config.alerts.webhook == "redacted"
    for shown in (
        dump(loaded.config),
        str(flatten(loaded.config)),
        repr(loaded),
        str(loaded.origins),
        str(loaded.notices),
    ):
        assert "SECRET" not in shown
    kept = tmp_path / "config.yaml"
    kept.write_text(dump(loaded.config))
    again = load(str(kept))
    assert again.webhook is None and again.config == loaded.config


def test_a_url_of_the_base_is_taken_out_too(tmp_path):
    base = write_recipe(tmp_path, alerts={"webhook": URL})
    above = tmp_path / "above.yaml"
    above.write_text(f"base: {base}\nseed: 3\n")
    loaded = load(str(above))
    assert loaded.webhook == URL and "SECRET" not in dump(loaded.config)


@pytest.mark.parametrize("typed", [f"alerts.webhook={URL}", f"alerts={{webhook: '{URL}'}}"])
def test_a_url_that_is_typed_is_refused_without_being_shown(tmp_path, typed):
    for recipe in (write_recipe(tmp_path), write_recipe(tmp_path, alerts={"webhook": URL})):
        with refuses(ConfigError, "alerts.webhook_env") as found:
            load(str(recipe), [typed])
        assert "SECRET" not in str(found.value)


@pytest.mark.parametrize(
    "url", ["SECRET", "ftp://x/SECRET", "https:///SECRET", f" {URL} SECRET", 7, ["SECRET"], {"SECRET": 1}]
)
def test_what_is_no_url_is_refused_without_being_shown(tmp_path, url):
    with refuses(ConfigError, "alerts.webhook") as found:
        load(str(write_recipe(tmp_path, alerts={"webhook": url})))
    assert "SECRET" not in str(found.value)


def test_a_config_cannot_hold_it():
    with pytest.raises(ValueError, match="alerts|webhook"):
        AlertsConfig(webhook=URL)


@pytest.mark.parametrize(
    "alerts",
    [
        {"webhook_env": "A", "webhook_file": "b"},
        {"webhook_env": "A", "webhook": URL},
        {"events": ["earthquake"]},
        {"mail": ["-oQ/tmp"]},
        {"mail": ["a b"]},
        {"daily_hour": 24},
        {"webhok": URL},
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, alerts):
    with refuses(ConfigError, "alerts") as found:
        load(str(write_recipe(tmp_path, alerts=alerts)))
    assert "SECRET" not in str(found.value)
