"""Where a command's prompts come from: words, a file, or standard input."""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from trainer.errors import ConfigError


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: of a `.jsonl` file what each object has under `prompt`, of any other its lines that are not empty.

    raises  ConfigError when it cannot be read, a line is not such an object, or there is none
    """
    try:
        is_json = path.suffix == ".jsonl"
        lines = path.read_bytes().split(b"\n") if is_json else []
        texts = [] if is_json else path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the file of prompts {path} cannot be read ({error}); name a text file, or a .jsonl file, in UTF-8"
        ) from None
    prompts = [_prompt_of(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    prompts += [text for text in texts if text.strip()]
    if not prompts:
        form = "one per line, or into a .jsonl file one object per line, with a field prompt"
        raise ConfigError(f"the file of prompts {path} has none; write {form}")
    return prompts


def _prompt_of(path: Path, number: int, line: bytes) -> str:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"line {number} of {path} is not JSON ({error}); each line is an object with a field prompt"
        ) from None
    if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
        raise ConfigError(
            f"line {number} of {path} has no prompt; each line is an object with a field prompt, which is a text"
        )
    return item["prompt"]


def gather_prompts(typed: Sequence[str], file: Path | None, standard_input: TextIO) -> list[str]:
    """All prompts of a command, in order: those typed (`-` stands for standard input), then those of a file.

    Without any there is one: what is piped into the command, or else the empty text, after which a document begins.
    """
    if not typed and file is None:
        return [_read_all(standard_input) if is_piped(standard_input) else ""]
    prompts = [_read_all(standard_input) if prompt == "-" else prompt for prompt in typed]
    return prompts + (read_prompts(file) if file else [])


def is_piped(standard_input: TextIO) -> bool:
    """Whether a pipe or a file stands at standard input: not a terminal, nor /dev/null, as under a scheduler."""
    try:
        mode = os.fstat(standard_input.fileno()).st_mode
    except (OSError, ValueError):
        return False  # it is closed, or is no file at all
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_all(standard_input: TextIO) -> str:
    """All of standard input, without the newline that `echo` puts at the end."""
    return standard_input.buffer.read().decode("utf-8", errors="replace").removesuffix("\n")
