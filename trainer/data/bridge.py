"""From a tokenizer of the `tokenizers` library to tiktoken, which is several times as fast: where their ids are the same.

They are where the vocabulary is byte-level BPE whose merges stand in the order of its ids (bridge_proof.py holds each token against
what merging with the ids below its own makes of it), and one pattern splits the text. What may still differ are the tables of
characters of two libraries for regular expressions: every character is tried, and a text with one that is taken differently goes
through `tokenizers`, as does one with a character that this Python's Unicode does not know.
"""

import functools
import json
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trainer import files
from trainer.data.bridge_proof import Encode, NotBridged, differing, normalizes, pattern_of, ranks_of, unreachable
from trainer.data.byte_pairs import BytePairs
from trainer.data.probe import unassigned

logger = logging.getLogger(__name__)

_FORM = 1
"""Of what is remembered of a proof; another number proves everything anew."""


@dataclass(frozen=True)
class Bridge:
    """Encodes by tiktoken the texts that it `takes`."""

    byte_pairs: BytePairs
    normalizes: bool
    """Whether texts are brought into NFC first."""
    added: tuple[str, ...]
    """Tokens that were added and are not special: a text that spells one is not for tiktoken."""
    doubtful: np.ndarray = field(repr=False, compare=False)
    """Per code point, whether the two libraries may take it differently, bool [0x110000]."""

    @functools.cached_property
    def _added(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.added)))

    def takes(self, text: str) -> bool:
        """Whether tiktoken gives a text without lone surrogates the ids of the original."""
        if self.added and self._added.search(text):
            return False
        return text.isascii() or not self.doubtful[np.frombuffer(text.encode("utf-32-le"), np.uint32)].any()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of texts that it takes, each [n] uint32. ValueError where a pattern does not come to an end."""
        return self.byte_pairs.encode_batch(
            [unicodedata.normalize("NFC", text) for text in texts] if self.normalizes else texts
        )


def find_bridge(pipeline: Mapping[str, Any], original: Encode, digest: str) -> Bridge | str:
    """The bridge of a tokenizer, or the reason why there is none: proved when it is first asked for, and remembered.

    pipeline  what `tokenizers` writes of it
    original  encodes by `tokenizers`
    digest    of the pipeline: what the proof is remembered by
    """
    try:
        ranks, pattern = ranks_of(pipeline["model"]), pattern_of(pipeline["pre_tokenizer"])
        added = _added(pipeline["added_tokens"], normalizes(pipeline["normalizer"]))
        proof = _recall(digest) or _prove(pipeline, ranks, pattern, added, original, digest)
    except NotBridged as reason:
        return str(reason)
    if proof["reason"]:
        return str(proof["reason"])
    bridge = _bridge(pipeline, ranks, pattern, added, proof)
    bridge.byte_pairs.encode("")  # builds it, before several threads ask for it
    return bridge


def _bridge(
    pipeline: Mapping[str, Any], ranks: dict[bytes, int], pattern: str, added: tuple[str, ...], proof: Mapping[str, Any]
) -> Bridge:
    left_out = set(proof["unreachable"])
    doubtful = _unassigned().copy()
    doubtful[proof["doubtful"]] = True
    byte_pairs = BytePairs({token: id for token, id in ranks.items() if id not in left_out}, pattern)
    return Bridge(byte_pairs, normalizes(pipeline["normalizer"]), added, doubtful)


def _prove(
    pipeline: Mapping[str, Any],
    ranks: dict[bytes, int],
    pattern: str,
    added: tuple[str, ...],
    original: Encode,
    digest: str,
) -> dict[str, Any]:
    """What must be known to build the bridge again, or the reason why there is none; remembered either way."""
    proof: dict[str, Any] = {"reason": None, "unreachable": [], "doubtful": []}
    try:
        proof["unreachable"] = unreachable(pipeline["model"], ranks)
        bridge = _bridge(pipeline, ranks, pattern, added, proof)

        def as_it_will(texts: Sequence[str]) -> list[np.ndarray]:
            return bridge.encode_batch(texts)

        proof["doubtful"] = differing(as_it_will, original)
    except NotBridged as reason:
        proof["reason"] = str(reason)
    except ValueError as error:  # a pattern that tiktoken cannot read
        proof["reason"] = f"tiktoken cannot split by its pattern ({' '.join(str(error).split())[:100]})"
    _remember(digest, proof)
    return proof


def _added(tokens: Sequence[Mapping[str, Any]], normalized: bool) -> tuple[str, ...]:
    """The added tokens that a text may spell; NotBridged where a text may spell them in more than one way."""
    found = [token for token in tokens if not token["special"]]
    if normalized and any(token["normalized"] for token in found):
        raise NotBridged("tokens that were added are looked for in the normalized text")
    return tuple(token["content"] for token in found)


@functools.cache
def _unassigned() -> np.ndarray:
    return unassigned()


def _proof_path(digest: str) -> Path:
    made_by = "-".join((version("tiktoken"), version("tokenizers"), unicodedata.unidata_version, str(_FORM)))
    return files.project_folder() / ".data" / ".tokenizers" / f"{digest[:32]}-{made_by}.json"


def _recall(digest: str) -> dict[str, Any] | None:
    try:
        return json.loads(_proof_path(digest).read_text())
    except (OSError, ValueError):
        return None


def _remember(digest: str, proof: Mapping[str, Any]) -> None:
    path = _proof_path(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps(proof))
    except OSError as error:
        logger.info("%s cannot be written (%s): the tokenizer is looked at anew each time", path, error.strerror)
