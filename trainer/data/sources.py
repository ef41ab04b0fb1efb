"""Where documents come from: one string names a source, one function reads it. The only user of datasets and pyarrow.

embedded:shakespeare[@SPLIT]     the corpus in this package
hf:NAME[:CONFIG][@SPLIT][#REVISION]   a dataset of the Hugging Face hub, streamed
notes.txt *.md *.rst             one document; other text files (source code) by their suffixes
*.jsonl *.ndjson *.json *.parquet    a document an object or row, under text_key; text and JSON also as .gz or .zst
a folder, or a pattern           every such file in it, in natural order; or a dataset that save_to_disk wrote
"""

import gzip
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from trainer.data.assets import asset_sha256, embedded_documents
from trainer.data.find import Found, bracket_hint, find, kinds_text, natural_key, readable, tell_left_out
from trainer.data.hub_datasets import HubDataset, dataset_of
from trainer.errors import DataError
from trainer.hub import is_hub_name

logger = logging.getLogger(__name__)

TEXT_KEYS = ("text", "content")
_TEXT = (".txt", ".md", ".rst")
_LINES = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".zst")
_DAMAGE = (OSError, EOFError, zlib.error)
"""What reading a packed file raises where it is cut short or its bytes have changed."""
_ROWS_AT_ONCE = 1024
_BLANK = b"\xef\xbb\xbf \t\r\n"
_KNOWN = "embedded:shakespeare, hf:NAME, or files and folders of .txt, .md, .rst, .jsonl, .json (also .gz, .zst) and .parquet"


class UnreadableError(DataError):
    """A file is there, and what is in it cannot be read."""


@dataclass(frozen=True)
class Source:
    """A source as it is typed, and the files that it stands for now, each real file once, in natural order."""

    name: str
    files: tuple[Path, ...] | None
    """None for what is no files of text: the hub, an embedded corpus, a dataset that was saved."""
    suffixes: tuple[str, ...] = ()
    """Further suffixes of files that are read as text."""
    skip_unreadable: bool = False

    @property
    def is_streamed(self) -> bool:
        """Whether reading it twice means fetching it twice."""
        return self.name.startswith("hf:")


def open_source(name: str, *, suffixes: Sequence[str] = (), skip_unreadable: bool = False) -> Source:
    """Finds out what a source stands for.

    suffixes         of files that are read as text: in a folder these alone, elsewhere besides the kinds that are known
    skip_unreadable  goes on without what cannot be read; each is named in a warning
    raises           DataError when it stands for nothing, a file is of an unknown kind, or something cannot be read
    """
    if name.startswith(("embedded:", "hf:")) or _is_saved_dataset(Path(os.path.expanduser(name))):
        return Source(name, None)
    path, suffixes = Path(os.path.expanduser(name)), tuple(suffixes)
    known = (*suffixes, *_TEXT, *_LINES, ".parquet")
    wanted = suffixes if suffixes and os.path.isdir(path) else known  # a pattern says itself which files are meant
    found = find(name, Path(), lambda path: _suffix(path) in wanted, deep=True)
    files = readable(found, f"source {name!r}", skip_unreadable=skip_unreadable, remedy="--skip-unreadable")
    if files == [path] and _suffix(path) not in known:
        raise DataError(
            f"source {name!r} is a {path.suffix or 'nameless'} file. Known are {_KNOWN}; other text files by --suffix {path.suffix or '.py'}."
        )
    if not files:
        raise DataError(_nothing(name, found))
    tell_left_out(
        found, f"source {name!r}", "name folders as sources of their own, and other files of text with --suffix .py,.c"
    )
    # Folders reach the same file by several links (documentation trees do): its text must not count twice.
    unique = {p.resolve(): p for p in reversed(files)}
    return Source(name, tuple(sorted(unique.values(), key=natural_key)), suffixes, skip_unreadable)


def suffixes(words: Iterable[str]) -> tuple[str, ...]:
    """Suffixes as a person types them, several by commas, with or without the dot."""
    typed = [suffix.strip() for word in words for suffix in word.split(",") if suffix.strip()]
    return tuple(dict.fromkeys(suffix if suffix.startswith(".") else f".{suffix}" for suffix in typed))


def _nothing(name: str, found: Found) -> str:
    """Why a source stands for no file of text."""
    if not found.is_there:
        hint = f" For a dataset of the hub write hf:{name}." if re.fullmatch(r"[\w.\-]+/[\w.\-]+", name) else ""
        return f"source {name!r} is not there: no file or folder has this name, and no pattern matches.{bracket_hint(name)} Known are {_KNOWN}.{hint}"
    inside = "; ".join(found.aside + ([f"files of other kinds: {kinds_text(found.others)}"] if found.others else []))
    return (
        f"source {name!r} is there, and holds no file of text that can be read{f' ({inside})' if inside else ''}. Known are {_KNOWN}; "
        "other text files by --suffix .py,.c"
    )


def documents(
    source: Source, text_key: str | None = None, split: str = "train", *, quiet: bool = False
) -> Iterator[str]:
    """The documents of a source, in its order. Empty ones are left out, and counted in a warning.

    text_key  where an object or a row holds its text; None takes `text`, else `content`
    split     of a dataset and of the embedded corpus; "@SPLIT" at the end of the source goes before it
    quiet     without warnings, where they are read a second time
    raises    DataError when it cannot be read (with `skip_unreadable` what a file holds before the damage is taken, and that
              is logged), or a document has no text under the key
    """
    kind, _, name = source.name.partition(":")
    found: Iterable[str]
    if source.files is not None:
        found = (text for path in source.files for text in _told_documents(source, path, text_key, quiet))
    elif kind == "embedded":
        name, _, named_split = name.partition("@")
        found = embedded_documents(name, named_split or split)
    elif kind == "hf":
        found = _texts(hub_rows(dataset_of(source.name), split), source.name, text_key)
    else:
        found = _texts(_saved_rows(Path(os.path.expanduser(source.name)), split, quiet), source.name, text_key)
    return _without_empty(found, source.name, quiet)


def _told_documents(source: Source, path: Path, text_key: str | None, quiet: bool) -> Iterator[str]:
    """The documents of a file; where it is damaged and the source goes on without, those before the damage."""
    try:
        yield from _file_documents(path, text_key, _suffix(path) in (*_TEXT, *source.suffixes))
    except UnreadableError as error:
        if not source.skip_unreadable:
            raise
        if not quiet:
            logger.warning("source %r: left out from the damage on: %s", source.name, error)


def rows(source: str) -> Iterator[tuple[str, Any]]:
    """The JSON rows of a file (.jsonl, .ndjson, .json, also .gz and .zst) or of `hf:NAME[:CONFIG]@SPLIT[#REVISION]`, each with where it stands.

    raises  DataError when the source cannot be read, or a line is no JSON
    """
    if is_hub_name(source):
        yield from hub_rows(dataset_of(source), "train")
        return
    path = Path(os.path.expanduser(source))
    suffix = _suffix(path)
    if suffix not in _LINES:
        raise DataError(
            f"{path} is a {path.suffix or 'nameless'} file; {', '.join(_LINES)} were expected (also .gz, .zst), one object per line."
        )
    try:
        with _open(path) as file:
            yield from _json_rows(file, path, suffix)
    except _DAMAGE as error:
        raise DataError(_damaged(str(path), error)) from None


def source_identity(source: Source) -> list[Any]:
    """What tells a source from another without reading it: its name, and the names and sizes of its files."""
    if source.files is not None:
        return [source.name, *([path.name, path.stat().st_size] for path in source.files)]
    kind, _, name = source.name.partition(":")
    return [source.name, asset_sha256(f"{name.partition('@')[0]}.jsonl.xz")] if kind == "embedded" else [source.name]


def estimated_text_bytes(source: Source) -> int:
    """Roughly how much text a source of files holds, compression undone; 0 when it is not known."""
    # Text packs to about a third of its size.
    return sum(p.stat().st_size * (3 if p.suffix.lower() in (*_PACKED, ".parquet") else 1) for p in source.files or ())


def _without_empty(texts: Iterable[str], source: str, quiet: bool) -> Iterator[str]:
    num_empty = 0
    for text in texts:
        if text:
            yield text
        else:
            num_empty += 1
    if num_empty and not quiet:
        logger.warning("%s: %d documents without text were left out", source, num_empty)


def _suffix(path: Path) -> str:
    """What kind of file it is, compression undone, in small letters."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in _PACKED else name.suffix


def _file_documents(path: Path, text_key: str | None, is_text: bool) -> Iterator[str]:
    if _suffix(path) == ".parquet" and not is_text:
        yield from _parquet_texts(path, text_key)
        return
    try:
        with _open(path) as file:
            if is_text:
                yield _utf8(file.read(), str(path))
            else:
                yield from _texts(_json_rows(file, path, _suffix(path)), str(path), text_key)
    except _DAMAGE as error:
        raise UnreadableError(_damaged(str(path), error)) from None


def _open(path: Path) -> BinaryIO:
    """A file's bytes, unpacked as they are read."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _damaged(where: str, error: Exception) -> str:
    return f"{where} cannot be read to its end: {error}. Copy it again; it may be truncated or damaged."


def _numbered(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines, each with where it stands."""
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            yield f"{path}, line {number}", line
    except _DAMAGE as error:
        raise UnreadableError(_damaged(f"{path}, line {number + 1},", error)) from None


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"{where} is not UTF-8: byte {content[error.start]:#04x} at {error.start:,}. Convert it, e.g. with iconv."
        ) from None


def _json_rows(file: BinaryIO, path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    """Rows of JSON lines, or of one JSON array, each with where it stands."""
    if suffix == ".json" and file.peek(64).lstrip(_BLANK).startswith(b"["):  # type: ignore[attr-defined]
        try:
            rows = _parsed(file.read(), str(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: {error.msg}. An array of objects was expected.") from None
        yield from ((f"{path}, element {number}", row) for number, row in enumerate(rows, start=1))
        return
    for where, line in _numbered(file, path):
        if not line.strip():
            continue
        try:
            yield where, _parsed(line, where)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: {error.msg} at column {error.colno}. One JSON object per line was expected; fix the line."
            ) from None


def _parsed(content: bytes, where: str) -> Any:
    """What JSON says; JSONDecodeError where it is none, DataError where it is some that Python does not read."""
    text = _utf8(content, where)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:  # brackets in thousands of brackets, a number of thousands of digits
        raise DataError(
            f"{where} holds JSON that cannot be read ({str(error).partition(';')[0]}). A JSON object with a text was expected; leave it out."
        ) from None


def _texts(rows: Iterable[tuple[str, Any]], source: str, text_key: str | None) -> Iterator[str]:
    """The text of each row; the key is found out in the first."""
    key = text_key
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {type(row).__name__}; a JSON object with a text was expected.")
        key = key or choose_text_key(row, source, None)
        if key not in row:
            raise DataError(_missing_key(where, key, row))
        text = _utf8(row[key], where) if isinstance(row[key], bytes) else row[key]
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: {key!r} is {type(text).__name__}, not text. Name another key with --text-key.")
        yield text or ""


def choose_text_key(keys: Iterable[str], source: str, text_key: str | None) -> str:
    """The key that holds the text: the one asked for, else `text`, else `content`; DataError when it is not there."""
    keys = list(keys)
    for key in (text_key,) if text_key else TEXT_KEYS:
        if key in keys:
            return key
    raise DataError(_missing_key(source, text_key or " or ".join(TEXT_KEYS), keys))


def _missing_key(where: str, key: str, keys: Iterable[str]) -> str:
    found = ", ".join(map(str, keys)) or "none"
    return f"{where} has no key {key!r}; it has: {found}. Name the one that holds the text with --text-key."


def _parquet_texts(path: Path, text_key: str | None) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            key = choose_text_key(file.schema_arrow.names, str(path), text_key)
            column_type = file.schema_arrow.field(key).type
            if not _is_text(column_type):
                raise DataError(f"{path}: column {key!r} holds {column_type}, not text. Name another with --text-key.")
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[key]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _utf8(text, f"{path}, row {number},") if isinstance(text, bytes) else text or ""
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableError(
            f"{path} cannot be read as parquet: {error}. Copy it again; it may be truncated."
        ) from None


def _is_text(column_type: Any) -> bool:
    """Whether an arrow type holds text, in whatever form: bytes are UTF-8 or reported, and a column of nothing is one of empty texts."""
    from pyarrow import types

    if types.is_dictionary(column_type):
        return _is_text(column_type.value_type)
    of_strings = (types.is_string, types.is_large_string, types.is_string_view)
    of_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_form(column_type) for is_form in (*of_strings, *of_bytes, types.is_null))


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "reading this source needs the package datasets, which is not installed. Install it (pip install "
            "datasets), or name files of text instead."
        ) from None
    return datasets


def hub_rows(dataset: HubDataset, split: str) -> Iterator[tuple[str, Any]]:
    """The rows of a dataset of the hub, of this split where it names none itself."""
    split, revision, where = dataset.split or split, dataset.revision, replace(dataset, split=None, revision=None).text
    datasets = _datasets()
    try:
        rows = datasets.load_dataset(dataset.name, dataset.config, split=split, revision=revision, streaming=True)
        yield from ((f"{where}@{split}, row {number}", row) for number, row in enumerate(rows, start=1))
    except Exception as error:
        # Three libraries raise through this call (no network, no such dataset, config, split), with no common class
        # of error; the text of each names the cause.
        reason = " ".join(str(error).split())[:400]
        raise DataError(
            f"dataset {where}, split {split!r}, cannot be read: {reason}. Check its name on huggingface.co, the "
            "config (hf:NAME:CONFIG), the split (@SPLIT), the revision (#REVISION), and the network."
        ) from None


def _saved_rows(path: Path, split: str, quiet: bool) -> Iterator[tuple[str, Any]]:
    try:
        dataset = _datasets().load_from_disk(os.fspath(path))
    except (OSError, ValueError, KeyError) as error:  # a file of it is gone, or is not what was saved
        raise UnreadableError(
            f"the dataset {path} cannot be read: {' '.join(str(error).split())[:400]}. Copy it again."
        ) from None
    if (path / "dataset_dict.json").is_file():
        if split not in dataset:
            raise DataError(f"{path} has no split {split!r}; it has: {', '.join(dataset)}. Name one folder of them.")
        if not quiet and (others := ", ".join(str(path / name) for name in dataset if name != split)):
            logger.warning("source %r: not read: the splits %s; name them as sources of their own", str(path), others)
        dataset = dataset[split]
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(dataset, start=1))
