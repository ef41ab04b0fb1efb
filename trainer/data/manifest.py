"""What a prepared corpus says about itself: `manifest.json`, written last, so that a folder with one is whole.

format_version      1
name, tokenizer, tokenizer_sha256, vocab_size, eot_id, eot_placement ("before" each document), dtype
begin_ids           what stands before each document: the separator, and bos where the family wants it; tokenizer_files, the sha256 of each
                    original file in the folder tokenizer/; both for tokenizers of Hugging Face only
lone_surrogates     how many became U+FFFD; not in manifests of earlier versions
documents, tokens, text_bytes, bytes_per_token       over both splits; `<|endoftext|>` counts as a token of 0 bytes
splits              the same four for "train" and for "validation"
repeats             documents and text_bytes: held_out_in_train, of what is held out, those that are trained on too; within_train, of
                    what is trained on, those that repeat an earlier one; not in manifests of earlier versions
baselines           {"unigram", "bigram"} in nats a validation token, or null
shards              file, split, tokens, documents (that begin in it), num_bytes, sha256
request             what was asked for: the same request is not prepared twice
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer import text
from trainer.data.layouts import how_to_prepare
from trainer.errors import DataError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# A vocabulary that is not embedded is copied here, so that the corpus can be moved with it, and the files of any other tokenizer there.
VOCABULARY, TOKENIZER = "tokenizer.tiktoken", "tokenizer"
_KEYS = {"name", "tokenizer", "tokenizer_sha256", "vocab_size", "bytes_per_token"}
_KEYS |= {"splits", "baselines", "shards", "request"}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, or None where there is none. A vocabulary or a tokenizer in the folder is named by its path.

    raises  DataError when the manifest cannot be read or is of another version
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Fix that, or name another folder.") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}). {how_to_prepare(again=True)}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format_version {version!r}; {FORMAT_VERSION} was expected. {how_to_prepare(again=True)}"
        )
    missing = _KEYS - manifest.keys()
    if missing:
        raise DataError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}. {how_to_prepare(again=True)}")
    if manifest["tokenizer"] in (VOCABULARY, TOKENIZER):
        manifest["tokenizer"] = str((Path(folder) / manifest["tokenizer"]).resolve())
    return manifest


def missing_shards(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the shards at a glance: those that are not there, or not of their size."""
    problems = []
    for shard in manifest["shards"]:
        path = Path(folder) / shard["file"]
        if not path.is_file():
            problems.append(f"{shard['file']} is missing")
        elif path.stat().st_size != shard["num_bytes"]:
            problems.append(f"{shard['file']} has {path.stat().st_size:,} bytes, expected {shard['num_bytes']:,}")
    return problems


def repeats(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]
) -> dict[str, dict[str, int]]:
    """How many documents, of how much text, are not new; both splits as hash (uint64) and bytes of text (int64) a document."""
    is_known = np.isin(validation[0], train[0])
    is_repeat = np.ones(train[0].size, dtype=bool)
    is_repeat[np.unique(train[0], return_index=True)[1]] = False

    def amount(mask: np.ndarray, sizes: np.ndarray) -> dict[str, int]:
        return {"documents": int(mask.sum()), "text_bytes": int(sizes[mask].sum())}

    return {"held_out_in_train": amount(is_known, validation[1]), "within_train": amount(is_repeat, train[1])}


def repeats_text(manifest: dict[str, Any], what: str) -> str | None:
    """How much text repeats, as a sentence; None where none does, or an earlier version wrote the manifest.

    what  `held_out_in_train` or `within_train`
    """
    amount = manifest.get("repeats", {}).get(what, {"documents": 0})
    if not amount["documents"]:
        return None
    whole = manifest["splits"]["validation" if what == "held_out_in_train" else "train"]
    share = amount["text_bytes"] / whole["text_bytes"] if whole["text_bytes"] else 1.0
    how_much = f"{amount['documents']:,} of {whole['documents']:,} documents ({text.size(amount['text_bytes'])}, {share:.1%} of the text)"
    if what == "held_out_in_train":
        return (
            f"{how_much} of what is held out are trained on too, so the validation loss is too low; hold out other text"
        )
    return f"{how_much} of what is trained on repeat an earlier one, and are trained on as often as they stand there"
