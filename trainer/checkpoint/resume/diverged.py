"""What a run that diverged leaves: its checkpoints from after it went wrong lose their names, so that `latest` is from before that."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from trainer import files
from trainer.checkpoint.format.store import CheckpointStore
from trainer.journal import Journal

log = logging.getLogger(__name__)

DIVERGED = "diverged"


def set_diverged_aside(store: CheckpointStore, first_unsure: int, resumed: int | None, journal: Journal) -> list[str]:
    """Takes the names of what this launch saved from step `first_unsure` on; returns what they are called now, the newest first.

    resumed  the step that this launch began from: that checkpoint was there before, and whether it is to blame nobody knows
    raises   OSError
    """
    if resumed is not None and first_unsure <= resumed:
        log.warning(
            f"no step since the resume at step {resumed} had a usual loss; if it diverges again under other settings, go further back with "
            "resume_from_checkpoint=STEP"
        )
    moved = []
    for entry in store.entries():
        if entry.number >= first_unsure and (resumed is None or entry.number > resumed):
            moved.append(files.set_aside(entry.path, DIVERGED).name)
            content = entry.manifest.content_digest if entry.manifest else None  # copies elsewhere are known by it
            journal.write("set_aside", step=entry.step, name=moved[-1], reason=DIVERGED, content=content)
            log.warning("%s may have diverged already, and is kept as %s", entry.path.name, moved[-1])
    if moved:
        store.point_links()
    return moved


def contents_set_aside(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """The `content_digest` of each checkpoint that was set aside because its run had diverged, by the run's journal."""
    aside = (event for event in events if event["event"] == "set_aside" and event.get("reason") == DIVERGED)
    return {event["content"] for event in aside if event.get("content")}


def never_went_well(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a run, by its journal, has diverged in every checkpoint that it ever had: nothing is lost when it starts over."""
    steps, has_diverged = set(), False
    for event in events:
        if event["event"] in ("save", "resume"):
            steps.add(event.get("step"))
        elif event["event"] == "set_aside" and event.get("reason") == DIVERGED:
            steps.discard(event.get("step"))
            has_diverged = True
    return has_diverged and not steps
