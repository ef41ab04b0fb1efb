"""The corpora that come with the trainer, tokenized when they are first used."""

import logging
import os
import platform
import shlex
import time
from pathlib import Path

from trainer import files, locks, text
from trainer.data.assets import asset_sha256
from trainer.data.manifest import MANIFEST, missing_shards, read_manifest
from trainer.data.prepare import disk_errors, prepare
from trainer.data.tokenizer import Tokenizer, load_tokenizer
from trainer.errors import DataError

logger = logging.getLogger(__name__)

EMBEDDED = ("shakespeare",)


def prepare_embedded(corpus: str, tokenizer: str, folder: Path) -> Path:
    """The folder `CORPUS-TOKENIZER` inside `folder`, made when it is not there or not right.

    raises  DataError for an unknown corpus or tokenizer, and where somebody else's folder is in its place

    Nine plays are for training, Twelfth Night is for validation. Processes may call it at once: one builds under
    another name and renames, the others wait for it.
    """
    if corpus not in EMBEDDED:
        raise DataError(f"no embedded corpus is called {corpus!r}; {text.did_you_mean(corpus, EMBEDDED)}")
    chosen = load_tokenizer(tokenizer)
    folder = Path(folder)
    target = folder / f"{corpus}-{chosen.name}"
    if _is_embedded(target, corpus, chosen):
        return target
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while (held := locks.take(folder / f".{target.name}.lock")) is None:
            time.sleep(0.1)
        with held:
            if _is_embedded(target, corpus, chosen):
                return target
            # Locks need not reach other machines that share the folder: they build under names of their own.
            mine = f".building-{target.name}-{platform.node()}"
            for leftover in folder.glob(f"{mine}-*"):
                files.remove_folder(leftover)
            staging = folder / f"{mine}-{os.getpid()}"
            held_out = [f"embedded:{corpus}@validation"]
            prepare([f"embedded:{corpus}"], staging, tokenizer, name=corpus, num_workers=1, validation_sources=held_out)
            if target.exists():
                _check_is_ours(target, corpus)
                files.remove_folder(target)
            try:
                files.commit_folder(staging, target)
            except OSError:
                files.remove_folder(staging)
                if not _is_embedded(target, corpus, chosen):
                    raise
    logger.info("tokenized the embedded corpus %s with %s into %s", corpus, chosen.name, target)
    return target


def _is_embedded(target: Path, corpus: str, tokenizer: Tokenizer) -> bool:
    """Whether a folder holds this corpus as it is embedded now, tokenized by this tokenizer."""
    try:
        manifest = read_manifest(target)
    except DataError:
        return False
    source = [f"embedded:{corpus}", asset_sha256(f"{corpus}.jsonl.xz")]
    return (
        manifest is not None
        and manifest["request"]["sources"] == [source]
        and manifest["request"]["tokenizer_sha256"] == tokenizer.sha256
        and not missing_shards(target, manifest)
    )


def _check_is_ours(target: Path, corpus: str) -> None:
    """Refuses to replace a folder that holds anything but a corpus which `prepare_embedded` made, an older one or what is left of one.

    raises  DataError with how to keep what is there
    """
    try:
        manifest = read_manifest(target)
    except DataError:
        manifest = None
    if manifest is not None:
        is_ours = [source[0] for source in manifest["request"]["sources"]] == [f"embedded:{corpus}"]
    else:
        is_ours = target.is_dir() and all(
            path.name == MANIFEST or path.name.startswith(f"{corpus}_") for path in target.iterdir()
        )
    if not is_ours:
        aside = target.with_name(f"my-{target.name}")
        raise DataError(
            f"{target} is where the embedded corpus {corpus!r} goes, and it holds something else, which is left as it is; move it away "
            f"({shlex.join(['mv', str(target), str(aside)])})"
            + (f", or train on it with {shlex.quote(f'data.corpus={target}')}" if manifest else "")
        )
