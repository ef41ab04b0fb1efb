"""A SentencePiece `.model` without the files of a Hugging Face tokenizer around it: encoded by sentencepiece itself, so the ids are its own."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trainer import files
from trainer import text as words
from trainer.data.tokens import Tokenizer, well_formed
from trainer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer(Tokenizer):
    """A model as sentencepiece reads it; what a text spells never becomes one of its control symbols."""

    processor: Any = field(repr=False, compare=False)
    """The `sentencepiece.SentencePieceProcessor`."""

    def __reduce__(self) -> tuple[Any, ...]:
        separator = self.processor.id_to_piece(self.eot_id)
        return open_sentence_piece, (Path(self.source), separator, self.begins_with_bos)

    @functools.cached_property
    def specials(self) -> Mapping[str, int]:
        ids = filter(self.processor.is_control, range(self.vocab_size))
        return {self.processor.id_to_piece(id): id for id in ids}

    @property
    def way(self) -> str:
        return "encodes by sentencepiece"

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        pieces = ((id, self.processor.id_to_piece(id)) for id in range(self.vocab_size))
        return [
            bytes([int(piece[3:5], 16)]) if self.processor.is_byte(id) else piece.replace("\u2581", " ").encode()
            for id, piece in pieces
        ]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        is_text = [not self.processor.is_control(id) for id in range(self.vocab_size)]
        return np.array([*map(len, self._token_bytes)], dtype=np.int64) * is_text

    def encode_array(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [
            np.array(ids, dtype=np.uint32) for ids in self.processor.encode([*map(well_formed, texts)], num_threads=1)
        ]


def open_sentence_piece(
    path: Path, separator: str | None = None, begins_with_bos: bool | None = None
) -> SentencePieceTokenizer:
    """The tokenizer of a `.model` file; the others are as of `load_tokenizer`, bos is before a document where the model has one.

    raises  DataError where sentencepiece is not installed, the file is not one of its models, or a wish cannot be had
    """
    if not find_spec("sentencepiece"):
        raise DataError(
            f"{path} is a SentencePiece model, and the package sentencepiece is not installed; run: pip install sentencepiece"
        )
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} is not a SentencePiece model ({words.one_line(error)}); download it again, or name another tokenizer"
        ) from None
    controls = {processor.id_to_piece(id): id for id in range(processor.vocab_size()) if processor.is_control(id)}
    if separator is not None and separator not in controls:
        raise DataError(
            f"the separator {separator!r} is not a control symbol of {path}; {words.did_you_mean(separator, controls)}"
        )
    roles = {
        name: id if id >= 0 else None for name in ("bos", "eos", "pad") for id in [getattr(processor, f"{name}_id")()]
    }
    eot_id = roles["eos"] if separator is None else controls[separator]
    if eot_id is None:
        raise DataError(
            f"{path} has no end of sentence to separate documents; name one of its control symbols with --separator"
        )
    if begins_with_bos and roles["bos"] is None:
        raise DataError(f"{path} has no bos token to stand before each document; leave --bos out")
    digest = files.sha256(path)
    return SentencePieceTokenizer(
        name=path.stem,
        vocab_size=processor.vocab_size(),
        eot_id=eot_id,
        bos_id=roles["bos"],
        eos_id=roles["eos"],
        pad_id=roles["pad"],
        begins_with_bos=roles["bos"] is not None if begins_with_bos is None else begins_with_bos,
        sha256=digest,
        source=str(path),
        files={path.name: digest},
        processor=processor,
    )
