"""The files that come with the package: a corpus and two vocabularies, each checked by its sha256 when it is read."""

import functools
import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

from trainer import text
from trainer.errors import DataError

FOLDER = Path(__file__).parent / "embedded"


def describe_assets() -> dict[str, dict[str, Any]]:
    """What stands in `assets.json`: for each file its digests, sizes, origin, licence, credit and how it was made."""
    return json.loads((FOLDER / "assets.json").read_text())


def asset_sha256(name: str) -> str:
    """The SHA-256 that the unpacked content of an asset must have. Raises DataError for an unknown name."""
    assets = describe_assets()
    if name not in assets:
        raise DataError(f"no embedded file is called {name!r}; {text.did_you_mean(name, assets)}")
    return assets[name]["content_sha256"]


def read_asset(name: str) -> bytes:
    """The unpacked content of an embedded file.

    raises  DataError when the name is unknown, the file is missing, or its bytes are not those that were packed
    """
    expected_content = asset_sha256(name)
    path = FOLDER / name
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Install the package again.") from None
    expected = describe_assets()[name]["packed_sha256"]
    found = hashlib.sha256(packed).hexdigest()
    if found != expected:
        raise _damaged(path, found, expected)
    content = lzma.decompress(packed)
    found = hashlib.sha256(content).hexdigest()
    if found != expected_content:
        raise _damaged(path, found, expected_content)
    return content


def _damaged(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{path} is damaged: its sha256 is {found[:16]}..., and {expected[:16]}... was expected. Install the package "
        "again."
    )


@functools.cache
def shakespeare_scenes() -> tuple[tuple[str, str], ...]:
    """The embedded corpus as (source, text) pairs, a scene each; source is "PLAY#NUMBER"."""
    lines = read_asset("shakespeare.jsonl.xz").decode().splitlines()
    return tuple((scene["source"], scene["text"]) for scene in map(json.loads, lines))


def embedded_documents(corpus: str, split: str) -> tuple[str, ...]:
    """The documents of an embedded corpus: split "train" is nine plays, "validation" is Twelfth Night.

    raises  DataError for an unknown corpus or split
    """
    if corpus != "shakespeare":
        raise DataError(f"no embedded corpus is called {corpus!r}; {text.did_you_mean(corpus, ['shakespeare'])}")
    if split not in ("train", "validation"):
        guess = text.did_you_mean(split, ["train", "validation"])
        raise DataError(f"embedded:{corpus} has no split {split!r}; {guess}")
    for_validation = split == "validation"
    return tuple(t for source, t in shakespeare_scenes() if source.startswith("twelfth_night#") == for_validation)
