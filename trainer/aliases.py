"""Names that settings, metrics and events had in earlier versions, each with its name of today: the one table of them.

An old name is read wherever a file or a person may still hold it: recipes, overrides and kept config.yaml files (config/load.py),
metrics.jsonl (metrics/curves.py), journal.jsonl (journal.py). What is written has today's name, with one exception: the charts of a
run that an earlier version began go on under the names which they began with (metrics/trackers.py), so that no curve is cut in two.
"""

from typing import Any

SETTINGS = {
    "checkpoint.max_loss_seconds": "checkpoint.max_lost_work_seconds",
    "checkpoint.second_place": "checkpoint.mirror",
    "checkpoint.second_place_every": "checkpoint.mirror_every",
    "checkpoint.second_place_keep": "checkpoint.mirror_keep",
    "checkpoint.second_place_bytes_per_second": "checkpoint.mirror_bytes_per_second",
}
"""Dotted names; a setting keeps its section."""

TAGS = {
    "promise/worst_loss_seconds": "checkpoint/worst_lost_work_seconds",
    "promise/overhead_fraction": "checkpoint/overhead_fraction",
    "promise/skipped_saves": "checkpoint/skipped_saves",
}
"""Keys of metrics.jsonl, which are tags too."""

GROUPS = {"loss": "Loss", "speed": "Speed"}
"""Groups of tags, in trackers only. TensorBoard sorts groups by their characters and opens the first two: capitals come first."""

EVENTS = {"second_place": "mirror"}
"""Kinds of events in journal.jsonl."""

CAUSES = {"refusal": "refused"}
"""Causes of `stop` events in journal.jsonl (ending/causes.py)."""

_FORMER_TAGS = {new: old for old, new in TAGS.items()}
_FORMER_GROUPS = {new: old for old, new in GROUPS.items()}


def tag_in_trackers(key: str) -> str:
    """The tag that a key of metrics.jsonl is drawn under: `speed/slowdown` -> `Speed/slowdown`."""
    group, slash, rest = key.partition("/")
    return f"{GROUPS.get(group, group)}{slash}{rest}"


def former_tag(tag: str) -> str:
    """What a tag was called in trackers before it had today's name; the same where that did not change.

    >>> former_tag("Loss/train"), former_tag("checkpoint/overhead_fraction"), former_tag("optim/lr")
    ('loss/train', 'promise/overhead_fraction', 'optim/lr')
    """
    group, slash, rest = _FORMER_TAGS.get(tag, tag).partition("/")
    return f"{_FORMER_GROUPS.get(group, group)}{slash}{rest}"


def rename_tags(record: dict[str, Any]) -> dict[str, Any]:
    """A record of metrics.jsonl under today's keys, in their order."""
    return record if TAGS.keys().isdisjoint(record) else {TAGS.get(key, key): record[key] for key in record}


def rename_settings(settings: dict[str, Any]) -> dict[str, str]:
    """Gives settings in nested mappings today's names, in place; returns {old: new} of those that were renamed.

    An old name whose new one is set too stays: the schema refuses it, since one of the two would be lost.
    """
    renamed = {}
    for old, new in SETTINGS.items():
        (section, old_key), new_key = old.split("."), new.rpartition(".")[2]
        place = settings.get(section)
        if isinstance(place, dict) and old_key in place and new_key not in place:
            place[new_key] = place.pop(old_key)
            renamed[old] = new
    return renamed
