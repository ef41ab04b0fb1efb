"""The files that a path, a folder or a pattern stands for: what is there and cannot be read is never left out without a word.

    *  ?  [ab]     as in a shell, one name of the path at a time; a name that is there as it is written is meant literally
    **             any number of folders

Whether something is a file or a folder is asked of os.path, which says no where this user may not look; pathlib raises there.
"""

import errno
import fnmatch
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import DataError

logger = logging.getLogger(__name__)

_MAX_NAMED = 20
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Found:
    """What a name stands for, and what else was found there."""

    files: list[Path] = field(default_factory=list)
    """The wanted ones that can be opened, in natural order."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """What would have been wanted, or may hold what is wanted, and cannot be read: why."""
    others: list[Path] = field(default_factory=list)
    """Files of other kinds."""
    aside: list[str] = field(default_factory=list)
    """Folders that were not looked into, each with the reason."""
    is_there: bool = True
    """Whether the name stands for anything at all."""


def find(name: str, base: Path, wanted: Callable[[Path], bool], *, deep: bool) -> Found:
    """Looks for the wanted files of a folder (with `deep` also in those below it), of a pattern, or for one file.

    name    a path or a pattern, relative to `base`; ~ is the home
    wanted  known by the name alone; a file that is named itself is wanted in any case
    """
    search = _Search(wanted)
    path = base / os.path.expanduser(name)
    if os.path.isdir(path):
        search.folder(path, deep)
    elif os.path.lexists(path):
        search.file(path)
    else:
        start = Path(path.anchor)  # the current folder for a relative path
        parts = path.parts[1:] if path.anchor else path.parts
        matches = list(dict.fromkeys(search.matches(start, parts)))
        for match in sorted(matches, key=natural_key):
            search.match(match, is_tree="**" in parts)
        search.is_there = bool(matches or search.found.unreadable)
    found = search.found
    return Found(sorted(found.files, key=natural_key), found.unreadable, found.others, found.aside, search.is_there)


def readable(found: Found, what: str, *, skip_unreadable: bool, remedy: str) -> list[Path]:
    """The files that were found; what cannot be read is named, each, in a DataError, or with `skip_unreadable` in warnings.

    remedy  how a person goes on without them
    """
    each = [f"{path} ({why})" for path, why in sorted(found.unreadable.items())]
    if each and not skip_unreadable:
        more = f"; and {len(each) - _MAX_NAMED} more" if len(each) > _MAX_NAMED else ""
        raise DataError(
            f"{what}: {len(each)} of what is there cannot be read: {'; '.join(each[:_MAX_NAMED])}{more}. Fix that, or go on without: {remedy}."
        )
    for one in each:
        logger.warning("%s: left out, since it cannot be read: %s", what, one)
    return found.files


def tell_left_out(found: Found, what: str, how_to_read: str) -> None:
    """One warning of what else a folder or pattern held; nothing where there was nothing."""
    parts = [*found.aside, *([f"files of other kinds ({kinds_text(found.others)})"] if found.others else [])]
    if parts:
        logger.warning("%s: not read: %s; %s", what, "; ".join(parts), how_to_read)


def kinds_text(others: Iterable[Path]) -> str:
    """Suffixes with their counts, the most frequent first."""
    kinds = Counter(path.suffix for path in others)
    shown = [f"{number:,} {suffix or 'without a suffix'}" for suffix, number in kinds.most_common(6)]
    return ", ".join(shown + (["..."] if len(kinds) > 6 else []))


def bracket_hint(name: str) -> str:
    """What to try where a name with brackets stands for nothing."""
    words = " Brackets in a pattern mean one of the letters in them; a bracket itself is written [[]."
    return words if "[" in name else ""


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """A sorting key under which part-2 comes before part-10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path)) if part]


class _Search:
    """One look for files; collects what it comes across."""

    def __init__(self, wanted: Callable[[Path], bool]) -> None:
        self.found, self.is_there, self._wanted = Found(), True, wanted

    def folder(self, path: Path, deep: bool) -> None:
        names = self._names(path)
        hidden = [name for name in names if name.startswith(".") and not os.path.isdir(path / name)]
        if hidden := [name for name in hidden if self._wanted(path / name)]:
            self.found.aside.append(f"{len(hidden)} hidden in {path} (e.g. {hidden[0]})")
        for name in names:
            entry = path / name
            if os.path.isdir(entry) and not name.startswith("."):
                self._inner_folder(entry, deep)
            elif not name.startswith("."):
                self._file_if_wanted(entry)
            elif deep and os.path.isdir(entry) and not os.path.islink(entry):
                self.found.aside.append(f"the hidden folder {entry}")

    def match(self, path: Path, *, is_tree: bool) -> None:
        """Something that a pattern matched; `is_tree` where it matches what is in folders, too."""
        if not os.path.isdir(path):
            self._file_if_wanted(path)
        elif not is_tree:
            self.found.aside.append(f"the folder {path}")

    def file(self, path: Path) -> None:
        """A file that is wanted in any case."""
        if why := _why_not(path):
            self.found.unreadable[path] = why
        else:
            self.found.files.append(path)

    def _file_if_wanted(self, path: Path) -> None:
        # A dangling link without a suffix may have led to a folder.
        if self._wanted(path) or (not os.path.exists(path) and not path.suffix):
            self.file(path)
        else:
            self.found.others.append(path)

    def _inner_folder(self, path: Path, deep: bool) -> None:
        if deep and not os.path.islink(path):
            self.folder(path, deep)
        elif deep:
            self.found.aside.append(f"the link to a folder {path}")
        else:
            try:
                holds_some = any(self._wanted(path / name) for name in os.listdir(path))
            except OSError as error:
                self.found.aside.append(f"the folder {path} ({error.strerror})")
            else:
                self.found.aside.extend([f"the folder {path}"] if holds_some else [])

    def matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """What the rest of a pattern matches in a folder."""
        if not parts:
            yield folder
            return
        first, rest = parts[0], parts[1:]
        if first == "**":
            yield from self.matches(folder, rest or ("*",))
            for name in self._names(folder):
                if not name.startswith(".") and os.path.isdir(folder / name) and not _is_loop(folder / name):
                    yield from self.matches(folder / name, parts)
        elif not _MAGIC.search(first) or os.path.lexists(folder / first):
            if os.path.lexists(folder / first):
                yield from self.matches(folder / first, rest)
        else:
            for name in self._names(folder):
                if fnmatch.fnmatchcase(name, first) and (first.startswith(".") or not name.startswith(".")):
                    yield from self.matches(folder / name, rest)

    def _names(self, folder: Path) -> list[str]:
        """The names in a folder; a folder that cannot be listed is noted, and has none."""
        try:
            return sorted(os.listdir(folder))
        except NotADirectoryError:
            return []
        except OSError as error:
            is_dangling = os.path.islink(folder) and not os.path.exists(folder)
            self.found.unreadable[folder] = _why_not(folder) if is_dangling else _words(error)
            return []


def _is_loop(folder: Path) -> bool:
    """Whether a link leads back to a folder above it."""
    return os.path.islink(folder) and Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))


def _why_not(path: Path) -> str:
    """Why a file cannot be read; empty when it can."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "neither a file nor a folder"
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        is_dangling = error.errno == errno.ENOENT and os.path.islink(path)
        return f"a link to {os.readlink(path)}, which is not there" if is_dangling else _words(error)
    return ""


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__
