"""Datasets of the Hugging Face hub by name: `hf:NAME[:CONFIG][@SPLIT][#REVISION]`, and the commit that a name means."""

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace

from trainer import hub
from trainer.streams import say


@dataclass(frozen=True)
class HubDataset:
    """What a source names of the hub; None where it says nothing."""

    name: str
    config: str | None
    split: str | None
    revision: str | None
    """A branch, a tag or a commit."""

    @property
    def text(self) -> str:
        """The source as it is typed."""
        parts = ((":", self.config), ("@", self.split), ("#", self.revision))
        return f"{hub.PREFIX}{self.name}" + "".join(f"{mark}{part}" for mark, part in parts if part)


def dataset_of(source: str) -> HubDataset:
    """`hf:NAME[:CONFIG][@SPLIT][#REVISION]` taken apart."""
    rest, _, revision = source.removeprefix(hub.PREFIX).partition("#")
    rest, _, split = rest.partition("@")
    name, _, config = rest.partition(":")
    return HubDataset(name, config or None, split or None, revision or None)


def at_commit(source: str, known: Collection[str] = ()) -> str:
    """A source with the commit that it means, so that it is the same text at any later time; one that is not of the hub stays as it is.

    known   sources that were read before: where one of them is this very source at a commit, or without one, nobody is asked
    raises  HubError when the hub has no such dataset or revision, or neither it nor the cache gives an answer
    """
    if not hub.is_hub_name(source):
        return source
    dataset = dataset_of(source)
    if dataset.revision and hub.COMMIT.fullmatch(dataset.revision):
        return source
    if dataset.revision is None:
        for name in known:
            if hub.is_hub_name(name) and replace(dataset_of(name), revision=None) == dataset:
                return name
    found = replace(dataset, revision=_commit(dataset.name, dataset.revision)).text
    say(f"{source} is {found}")
    return found


@functools.cache
def _commit(name: str, revision: str | None) -> str:
    """Asked once: the splits of one dataset are of one commit."""
    return hub.commit_of_dataset(name, revision)
