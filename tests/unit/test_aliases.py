"""Each old name of a setting, a metric and an event is read as that of today, and told once to the person who wrote it."""

import json

import pytest

from tests.messages import refuses
from trainer import aliases
from trainer.config.load import dump, flatten, kept_settings, load, load_resolved
from trainer.errors import ConfigError
from trainer.journal import JOURNAL, read_events
from trainer.metrics.curves import CURVE, last_record, read_records
from trainer.metrics.tags import MEANINGS, drawn, layout

VALUES = {
    "checkpoint.max_loss_seconds": 7.5,
    "checkpoint.second_place": "elsewhere",
    "checkpoint.second_place_every": 3,
    "checkpoint.second_place_keep": 4,
    "checkpoint.second_place_bytes_per_second": 5000,
}


@pytest.fixture
def recipe(tmp_path):
    """What writes a recipe over a shipped one; returns its path."""

    def write(text, name="mine.yaml"):
        (tmp_path / name).write_text(f"base: shakespeare\n{text}")
        return str(tmp_path / name)

    return write


def test_every_old_setting_has_a_new_one_in_the_same_section_and_a_value_here():
    assert VALUES.keys() == aliases.SETTINGS.keys()
    for old, new in aliases.SETTINGS.items():
        assert new in flatten(load("shakespeare").config)
        assert old.partition(".")[0] == new.partition(".")[0]


@pytest.mark.parametrize("old", aliases.SETTINGS)
def test_an_old_setting_counts_in_a_recipe_its_base_an_override_and_a_kept_config(recipe, tmp_path, old):
    new, value = aliases.SETTINGS[old], VALUES[old]
    section, _, key = old.partition(".")
    path = recipe(f"{section}:\n  {key}: {value}\n")
    (tmp_path / "above.yaml").write_text("base: mine.yaml\n")
    in_recipe, in_base = load(path), load(str(tmp_path / "above.yaml"))
    in_override, in_section = (
        load("shakespeare", [f"{old}={value}"]),
        load("shakespeare", [f"{section}={{{key}: {value}}}"]),
    )
    for loaded, place in (
        (in_recipe, "mine.yaml:3"),
        (in_base, "mine.yaml:3"),
        (in_override, "override"),
        (in_section, "override"),
    ):
        assert flatten(loaded.config)[new] == value
        assert loaded.old_names == {old: place}
        (notice,) = [notice for notice in loaded.notices if old in notice]
        assert place in notice
        assert new in notice
    assert in_recipe.origins[new] == "mine.yaml:3"
    kept = tmp_path / "config.yaml"
    kept.write_text(dump(in_recipe.config).replace(f"  {new.partition('.')[2]}:", f"  {key}:"))
    assert f"  {key}: {value}" in kept.read_text()
    assert flatten(load_resolved(kept))[new] == value
    assert kept_settings(kept)[new] == value
    assert old not in kept_settings(kept)


def test_an_override_of_the_new_name_is_over_the_old_one_in_the_recipe_and_the_other_way_round(recipe):
    old = recipe("checkpoint: {max_loss_seconds: 5}")
    new = recipe("checkpoint: {max_lost_work_seconds: 5}", "new.yaml")
    assert load(old, ["checkpoint.max_lost_work_seconds=6"]).config.checkpoint.max_lost_work_seconds == 6
    assert load(new, ["checkpoint.max_loss_seconds=6"]).config.checkpoint.max_lost_work_seconds == 6


def test_an_old_name_beside_the_new_one_and_a_value_that_is_none_are_refused_by_the_name_that_was_written(recipe):
    both = recipe("checkpoint:\n  second_place: a\n  mirror: b\n")
    with refuses(ConfigError, "checkpoint.second_place", "checkpoint.mirror", "mine.yaml:3"):
        load(both)
    with refuses(ConfigError, "second_place_keep", "0100"):
        load(recipe("checkpoint: {second_place_keep: 0100}"))


def test_the_names_of_today_are_told_to_nobody():
    assert load("shakespeare", ["checkpoint.mirror_keep=2"]).old_names == {}


@pytest.mark.parametrize("old", aliases.TAGS)
def test_an_old_metric_is_read_under_its_new_name_and_drawn_by_it(tmp_path, old):
    new = aliases.TAGS[old]
    (tmp_path / CURVE).write_text(json.dumps({"step": 3, "loss": 1.0, old: 2.0, "z": 1}) + "\n")
    expected = {"step": 3, "loss": 1.0, new: 2.0, "z": 1}
    assert read_records(tmp_path / CURVE) == [expected]
    assert list(last_record(tmp_path / CURVE)) == list(expected)
    assert drawn(expected) == {"Loss/train": 1.0, new: 2.0}
    assert aliases.former_tag(new) == old
    charts = [pattern for charts in layout(()).values() for _, patterns in charts.values() for pattern in patterns]
    assert (f"^{old}$" in charts) == (f"^{new}$" in charts)


def test_the_groups_that_tensorboard_opens_come_first_by_their_characters():
    groups = sorted({tag.partition("/")[0] for tag in MEANINGS})
    assert groups[:2] == ["Loss", "Speed"] == sorted(aliases.GROUPS.values())
    assert aliases.tag_in_trackers("speed/slowdown") == "Speed/slowdown"


@pytest.mark.parametrize("old", aliases.EVENTS)
def test_an_old_event_is_found_by_its_new_kind(tmp_path, old):
    lines = [{"event": old, "step": 1}, {"event": aliases.EVENTS[old], "step": 2}, {"event": "save", "step": 3}]
    (tmp_path / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_events(tmp_path, aliases.EVENTS[old])
    assert [event["step"] for event in found] == [1, 2]
    assert {event["event"] for event in read_events(tmp_path)} == {aliases.EVENTS[old], "save"}
