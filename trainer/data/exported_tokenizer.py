"""A tokenizer's own files beside an exported model, and whether AutoTokenizer opens them there as it was opened before."""

import json
import logging
from pathlib import Path

from trainer import files
from trainer.data.hugging_face import HuggingFaceTokenizer, fingerprint, keep
from trainer.data.tokens import Tokenizer
from trainer.text import one_line

logger = logging.getLogger(__name__)

_OF_VERSION_5 = "TokenizersBackend"
_KNOWN_TO_BOTH = "PreTrainedTokenizerFast"
"""What transformers 4 calls it."""


def write_beside_model(tokenizer: Tokenizer, folder: Path) -> None:
    """Copies the original files into an export, byte by byte, and warns where AutoTokenizer does not open them there with the same ids.

    Where they do not name the class that reads them, transformers takes the one of the model's family, which may read them in another
    way: config.json names it then.
    """
    keep(tokenizer, folder, as_opened=False)
    if isinstance(tokenizer, HuggingFaceTokenizer) and not _names_class(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = tokenizer.tokenizer_class.replace(_OF_VERSION_5, _KNOWN_TO_BOTH)
        files.write_atomic(folder / "config.json", json.dumps(config | {"tokenizer_class": known}, indent=2) + "\n")
    if problem := _problem(tokenizer, folder):
        logger.warning(
            "AutoTokenizer does not open the export with the ids of the training: %s; its tokenizer files are those that %s has, byte by byte: "
            "open them as that was opened",
            problem,
            tokenizer.source,
        )


def _names_class(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class"))


def _problem(tokenizer: Tokenizer, folder: Path) -> str | None:
    from transformers import AutoTokenizer

    try:
        opened = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever class: `tokenizers` raises bare Exceptions
        return one_line(error)
    backend = getattr(opened, "backend_tokenizer", None)
    if backend is None or fingerprint(json.loads(backend.to_str())) != tokenizer.sha256:
        return f"it takes the class {type(opened).__name__}"
    return None
