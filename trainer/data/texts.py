"""The documents of several sources: each file once, with the split that each document belongs to, or the rule that says it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from trainer import text
from trainer.data.encode import Labelled
from trainer.data.hold_out import HoldOut, choose
from trainer.data.sources import Source, documents

logger = logging.getLogger(__name__)

MAX_MEASURED_BYTES = 64 << 20  # of a source that is fetched, kept in memory


def each_file_once(sources: Sequence[Source]) -> list[Source]:
    """The sources without what an earlier one of them stands for already, which is logged with its size."""
    seen: set[Path | str] = set()
    kept = []
    for source in sources:
        keys: list[Path | str] = [source.name] if source.files is None else [path.resolve() for path in source.files]
        repeated = [key for key in keys if key in seen]
        if repeated and source.files is None:
            logger.warning("source %r was named before, and counts once", source.name)
            continue
        if repeated:
            num_bytes = sum(path.stat().st_size for path in repeated if isinstance(path, Path))
            which = f"{len(repeated)} of its {len(keys)} files ({text.size(num_bytes)}, e.g. {repeated[0]})"
            logger.warning("source %r: %s were named before, and count once", source.name, which)
            source = replace(source, files=tuple(path for path in source.files or () if path.resolve() not in seen))
        seen.update(keys)
        kept.append(source)
    return kept


def measured(
    sources: Sequence[Source], text_key: str | None, fraction: float, progress: Callable[[int, int], None] | None
) -> tuple[HoldOut, Iterator[Labelled]]:
    """Which text is held out, and all documents, whose split that rule decides.

    It takes a look at all text before the first token is written. What is fetched is not fetched twice: its beginning is
    measured, kept in memory, and stands for the whole.
    """
    if not fraction:
        return HoldOut(), labelled(sources, None, text_key)
    again: list[Iterable[str]] = []

    def first_look() -> Iterator[str]:
        for source in sources:
            if not source.is_streamed:
                yield from documents(source, text_key, quiet=True)
                again.append(documents(source, text_key))
                continue
            stream, beginning, num_bytes = documents(source, text_key), [], 0
            for document in stream:
                beginning.append(document)
                yield document
                num_bytes += len(document)
                if num_bytes >= MAX_MEASURED_BYTES:
                    break
            again.append(chain(beginning, stream))

    def reported() -> Iterator[str]:
        for number, document in enumerate(first_look(), start=1):
            if progress and number % 10_000 == 0:
                progress(number, 0)
            yield document

    rule = choose(reported(), fraction)
    return rule, ((None, document) for documents_ in again for document in documents_)


def labelled(sources: Sequence[Source], split: str | None, text_key: str | None) -> Iterator[Labelled]:
    """Documents with the split they belong to; None where their hash decides."""
    for source in sources:
        for document in documents(source, text_key, split=split or "train"):
            yield split, document
