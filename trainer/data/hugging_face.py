"""Tokenizers of the Hugging Face world: a folder with tokenizer.json, or a SentencePiece `.model`, with the ids that AutoTokenizer gives.

transformers opens them, whatever their class makes of the file; what it then hands to `tokenizers` is the original here. Byte-level BPE
goes through tiktoken instead where the ids are proved to be the same (bridge.py). What is remembered beside copies of the original
files, in `documents.json`, is how documents are laid out, and the class that transformers took.
"""

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer import files
from trainer import text as words
from trainer.byte_level import spelled_bytes
from trainer.data.bridge import Bridge, find_bridge
from trainer.data.sentence_piece import open_sentence_piece
from trainer.data.tokens import REPLACEMENT, Tokenizer, well_formed
from trainer.errors import DataError
from trainer.model_files import BESIDE_VOCABULARY, CHAT_TEMPLATES

logger = logging.getLogger(__name__)

DOCUMENTS = "documents.json"
"""Beside copied files: separator, begins_with_bos and, for one that transformers opened, tokenizer_class."""
VOCABULARY_PATTERNS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")
"""One of these is there where there is a tokenizer."""
_CONFIGS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")
"""Without one of these a `.model` is for sentencepiece alone."""
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
"""What families call the end of a text; the `eos_token` of a chat model may be the end of a turn."""
_DECIDES_NOTHING = ("trim_offsets", "version", "truncation", "padding", "post_processor", "decoder")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, kw_only=True)
class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer as transformers opened it."""

    backend: Any = field(repr=False, compare=False)
    """The `tokenizers.Tokenizer`, which takes special tokens in a text as text."""
    tokenizer_class: str = field(compare=False)
    """The class of transformers that opened it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.source, self._token_bytes[self.eot_id].decode(), self.begins_with_bos)

    @functools.cached_property
    def bridge(self) -> Bridge | str:
        """The way through tiktoken, or why there is none; the first time that a tokenizer is asked, it takes some seconds."""
        return find_bridge(json.loads(self.backend.to_str()), self._original, self.sha256)

    @functools.cached_property
    def specials(self) -> Mapping[str, int]:
        found = self.backend.get_added_tokens_decoder().items()
        return {added.content: id for id, added in found if added.special}

    @property
    def way(self) -> str:
        if isinstance(self.bridge, str):
            return f"encodes by tokenizers, since {self.bridge}"
        return "encodes by tiktoken, whose ids are proved to be the same"

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        table = [REPLACEMENT] * self.vocab_size
        shown = _shown(json.loads(self.backend.to_str()))
        for token, id in self.backend.get_vocab(with_added_tokens=False).items():
            table[id] = shown(token)
        for id, added in self.backend.get_added_tokens_decoder().items():
            # One that is not special is a word that the vocabulary lacked, written as its words are.
            table[id] = (
                shown(added.content) if "\u2581" in added.content and not added.special else added.content.encode()
            )
        return table

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        lengths = np.array([*map(len, self._token_bytes)], dtype=np.int64)
        known = {*self.backend.get_vocab(with_added_tokens=True).values()}
        lengths[[id for id in range(self.vocab_size) if id not in known]] = 0
        lengths[[*self.specials.values()]] = 0
        return lengths

    def encode_array(self, text: str) -> np.ndarray:
        return self._original([well_formed(text)])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts, bridge = [*map(well_formed, texts)], self.bridge
        if isinstance(bridge, str):
            return self._original(texts)
        is_bridged = [bridge.takes(text) for text in texts]
        try:
            bridged = iter(bridge.encode_batch([text for text, is_one in zip(texts, is_bridged) if is_one]))
        except ValueError:  # a run of spaces so long that the pattern does not come to an end
            return self._original(texts)
        others = iter(self._original([text for text, is_one in zip(texts, is_bridged) if not is_one]))
        return [next(bridged if is_one else others) for is_one in is_bridged]

    def _original(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [
            np.array(encoding.ids, dtype=np.uint32)
            for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)
        ]


def open_hugging_face(path: Path, separator: str | None = None, begins_with_bos: bool | None = None) -> Tokenizer:
    """The tokenizer of a folder, of a tokenizer.json in one, or of a SentencePiece `.model`; the others are as of `load_tokenizer`."""
    folder, found = _files(path)
    if DOCUMENTS in found:
        remembered = _read_json(folder / DOCUMENTS)
        separator = remembered.get("separator") if separator is None else separator
        begins_with_bos = remembered.get("begins_with_bos") if begins_with_bos is None else begins_with_bos
    if (model := folder / found[0]).suffix == ".model" and not {*found} & {*_CONFIGS}:
        return open_sentence_piece(model, separator, begins_with_bos)
    states = tuple((name, (folder / name).stat().st_mtime_ns, (folder / name).stat().st_size) for name in found)
    return _open(folder, states, separator, begins_with_bos)


def keep(tokenizer: Tokenizer, folder: Path, *, as_opened: bool = True) -> None:
    """Copies the original files of a tokenizer into a folder, byte by byte.

    as_opened  writes beside them how it was opened, so that the folder gives this tokenizer again
    """
    source = Path(tokenizer.source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in tokenizer.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / name, ((source.parent if source.is_file() else source) / name).read_bytes())
    if as_opened:
        remembered = {"separator": tokenizer.decode([tokenizer.eot_id]), "begins_with_bos": tokenizer.begins_with_bos}
        if isinstance(tokenizer, HuggingFaceTokenizer):
            remembered["tokenizer_class"] = tokenizer.tokenizer_class
        files.write_atomic(folder / DOCUMENTS, json.dumps(remembered, indent=2) + "\n")


def _again(source: str, separator: str, begins_with_bos: bool) -> Tokenizer:
    return open_hugging_face(Path(source), separator, begins_with_bos)


def _files(path: Path) -> tuple[Path, list[str]]:
    """The folder of a tokenizer, and its files in it by name; DataError where there is none."""
    if path.is_file() and path.suffix == ".model":
        return path.parent, [path.name, *([DOCUMENTS] if (path.parent / DOCUMENTS).is_file() else [])]
    if path.is_file() and path.name != "tokenizer.json":
        raise DataError(
            f"{path} is not a tokenizer; name a folder with a tokenizer.json, that file itself, a SentencePiece .model, or a .tiktoken file"
        )
    folder = path.parent if path.is_file() else path
    if not any(each.is_file() for name in VOCABULARY_PATTERNS for each in folder.glob(name)):
        there = ", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "nothing"
        raise DataError(
            f"the folder {folder} holds no tokenizer: {VOCABULARY_PATTERNS[0]} was expected, and it holds {there}; name the folder that "
            "save_pretrained wrote the tokenizer into"
        )
    found = [
        found
        for name in (*VOCABULARY_PATTERNS, *BESIDE_VOCABULARY, CHAT_TEMPLATES, DOCUMENTS)
        for found in sorted(folder.glob(name))
    ]
    return folder, [str(each.relative_to(folder)) for each in found]


@functools.lru_cache(maxsize=4)
def _open(
    folder: Path, states: tuple[tuple[str, int, int], ...], separator: str | None, begins_with_bos: bool | None
) -> HuggingFaceTokenizer:
    # Times and sizes are part of the key only: a file that was written again is read again.
    remembered = _read_json(folder / DOCUMENTS) if (folder / DOCUMENTS).is_file() else {}
    with _in_words(folder):
        opened = _by_transformers(folder, remembered.get("tokenizer_class"))
        backend = getattr(opened, "backend_tokenizer", None)
        if backend is None:
            raise DataError(
                f"{folder} opens as {type(opened).__name__}, which is written in Python and has no tokenizer.json; convert it once, by "
                "save_pretrained of a fast tokenizer, and name that folder"
            )
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        pipeline = json.loads(backend.to_str())
    ids = backend.get_vocab(with_added_tokens=True).values()
    specials = {added.content: id for id, added in backend.get_added_tokens_decoder().items() if added.special}
    if not pipeline["model"]["vocab"]:
        raise DataError(f"{folder} has an empty vocabulary; download it again, or name another tokenizer")
    ends = _separator(folder, opened, specials, separator)
    if begins_with_bos is None:
        begins_with_bos = _puts_bos(opened)
    if begins_with_bos and opened.bos_token_id is None:
        raise DataError(f"{folder} has no bos token to stand before each document; leave --bos out")
    return HuggingFaceTokenizer(
        name=folder.name,
        vocab_size=max(ids) + 1,
        eot_id=specials[ends],
        bos_id=opened.bos_token_id,
        eos_id=opened.eos_token_id,
        pad_id=opened.pad_token_id,
        begins_with_bos=bool(begins_with_bos),
        sha256=fingerprint(pipeline),
        source=str(folder),
        files={name: files.sha256(folder / name) for name, _, _ in states if name != DOCUMENTS},
        backend=backend,
        tokenizer_class=type(opened).__name__,
    )


def fingerprint(pipeline: Mapping[str, Any]) -> str:
    """Stands for what decides about ids in what `tokenizers` writes of a tokenizer: not for templates, decoders and defaults."""
    return hashlib.sha256(json.dumps(_without_defaults(pipeline), sort_keys=True).encode()).hexdigest()


def _without_defaults(value: Any) -> Any:
    if not isinstance(value, dict):
        return (
            [*map(_without_defaults, value)]
            if isinstance(value, list) and any(isinstance(each, dict) for each in value)
            else value
        )
    return {
        key: _without_defaults(each)
        for key, each in value.items()
        if key not in _DECIDES_NOTHING and each not in (None, False, "")
    }


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What transformers and tokenizers say of files that are not a tokenizer, as one paragraph."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # whatever class: `tokenizers` raises bare Exceptions
        if "trust_remote_code" in str(error):
            raise DataError(
                f"{path} brings a tokenizer of its own, written in Python, and nothing that comes with a tokenizer is executed; convert it "
                "once where you trust it, by save_pretrained of a fast tokenizer, and name that folder"
            ) from None
        raise DataError(
            f"{_broken(path) or path} cannot be opened as a tokenizer ({words.one_line(error)}); download it again, or name a folder that "
            "AutoTokenizer.from_pretrained opens"
        ) from error


def _broken(path: Path) -> Path | None:
    """The first file of a tokenizer that is not JSON, where its name says so."""
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ):
        try:
            json.loads((path / name).read_bytes())
        except OSError:
            continue
        except ValueError:
            return path / name
    return None


def _by_transformers(path: Path, tokenizer_class: str | None) -> Any:
    import transformers

    settings = {"split_special_tokens": True, "local_files_only": True}
    if tokenizer_class and (known := getattr(transformers, tokenizer_class, None)):
        return known.from_pretrained(str(path), **settings)
    return transformers.AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, **settings)


def _separator(path: Path, opened: Any, specials: Mapping[str, int], wanted: str | None) -> str:
    """The special token that stands between documents."""
    if wanted is not None:
        if wanted not in specials:
            raise DataError(
                f"the separator {wanted!r} is not a special token of {path}; {words.did_you_mean(wanted, list(specials)[:40])}"
            )
        return wanted
    eos = opened.eos_token
    known = [token for token in _ENDS if token in specials]
    if eos in specials and (eos in _ENDS or not known):
        return str(eos)
    if known:
        logger.info(
            "%s: documents are separated by %s, the end of a text, and not by %s, its eos_token", path, known[0], eos
        )
        return known[0]
    if opened.sep_token in specials:
        return str(opened.sep_token)
    raise DataError(
        f"{path} has no token that ends a text; name the special token that should stand before each document with --separator"
        + (f", for instance {next(iter(specials))}" if specials else ", after one was added to the tokenizer")
    )


def _puts_bos(opened: Any) -> bool:
    """Whether the tokenizer's own template puts bos before a text, or its config says that one belongs there."""
    bos = opened.bos_token_id
    return bos is not None and (
        bool(opened.init_kwargs.get("add_bos_token")) or opened.encode("", add_special_tokens=True)[:1] == [bos]
    )


def _shown(pipeline: Mapping[str, Any]) -> Callable[[str], bytes]:
    """How a token of the model's vocabulary reads as bytes of a text."""
    model = pipeline["model"]
    steps = [step for key in ("pre_tokenizer", "decoder") for step in _steps(pipeline[key])]
    if "ByteLevel" in steps:
        return lambda token: token.encode() if (spelled := spelled_bytes(token)) is None else spelled
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return lambda token: (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()
    suffix = model.get("end_of_word_suffix") or ""

    def show(token: str) -> bytes:
        if model.get("byte_fallback") and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        word = f"{token.removesuffix(suffix)} " if suffix and token.endswith(suffix) else token
        return word.replace("\u2581", " ").encode()

    return show


def _steps(part: Mapping[str, Any] | None) -> list[str]:
    if part is None:
        return []
    inner = part.get("pretokenizers", part.get("decoders"))
    return [part["type"]] if inner is None else [kind for step in inner for kind in _steps(step)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({words.one_line(error)}); copy the folder again, or prepare the corpus again"
        ) from None
    if not isinstance(found, dict):
        raise DataError(
            f"{path} does not say how a tokenizer was opened; copy the folder again, or prepare the corpus again"
        )
    return found
