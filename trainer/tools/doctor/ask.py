"""Questions put to processes that may die of them: each answer that came is kept, and a death is an answer too."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from trainer import start
from trainer.safety.parent import STARTED_BY
from trainer.text import duration, shortened
from trainer.tools.doctor.examine import Answer

COMMAND = start.command("trainer.tools.doctor.examine")

PATIENCE_SECONDS = 600.0
"""How long one process may take: a first import of torch and TransformerEngine from a busy disk, and kernels that are compiled."""

_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Variables that would make the process take itself for one of a group, and wait for the others."""


def ask(
    questions: Sequence[str], asked: Answer | None, environment: Mapping[str, str] = os.environ
) -> dict[str, Answer]:
    """The answers by question; one that a process died of has the `problem` that it did.

    asked         the launch that `examine.find_out` is asked about
    environment   the process's, for a question about a launch that launch's own
    """
    answers: dict[str, Answer] = {}
    while left := [question for question in questions if question not in answers]:
        found, death = _ask_one_process(left, asked, environment)
        answers.update(found)
        if death and (rest := [question for question in left if question not in found]):
            answers[rest[0]] = {"problem": f"the process that tried it {death}"}
    return answers


def _ask_one_process(
    questions: Sequence[str], asked: Answer | None, environment: Mapping[str, str]
) -> tuple[dict[str, Answer], str | None]:
    """What one process answered, and how it ended where that was not well; None where others may be asked of the next."""
    here, there = os.pipe()
    given = {**environment, STARTED_BY: str(os.getpid())}
    variables = {name: value for name, value in given.items() if name not in _OF_A_RANK}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output, open(here, "rb") as answers:
        with open(there, "wb"):
            process = subprocess.Popen(
                [*COMMAND, str(there)],
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=output,
                pass_fds=[there],
                start_new_session=True,
                text=True,
            )
        death = None
        try:
            process.communicate(json.dumps({"questions": list(questions), "asked": asked}), timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            death = f"gave no answer in {duration(PATIENCE_SECONDS)}"
        finally:
            _end(process)
        os.set_blocking(here, False)  # what it started may still hold the other end
        found = dict(map(json.loads, (answers.read() or b"").split(b"\n")[:-1]))  # the whole lines
        if death is None and (process.returncode or not found):
            death = f"{_how(process.returncode)}{_last_words(output)}"
        return found, death


def _end(process: subprocess.Popen) -> None:
    """Leaves nothing of it behind."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {next((known.name for known in signal.Signals if known == -code), f'signal {-code}')}"


def _last_words(output: Any) -> str:
    output.seek(0)
    lines = [line for line in output.read().splitlines() if line.strip()]
    return f"; its last words: {shortened(lines[-1], 200)}" if lines else ""
