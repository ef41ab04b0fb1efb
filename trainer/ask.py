"""Asks a run that trains to save or to stop, from another process, and waits for its answer.

What is asked lies in runs/NAME (safety/request_file.py), the answer stands in its journal. So it works from any machine that sees the folder,
for whoever may write there, and without a word to the process itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.checkpoint.format.manifest import folder_name
from trainer.config.folders import checkpoints_folder, command_line, find_run
from trainer.config.load import load_resolved
from trainer.ending.outcome_file import read_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import LaunchError
from trainer.journal import JOURNAL, events_from
from trainer.locks import is_trained, supervisor_of
from trainer.safety import request_file
from trainer.safety.request_file import Asked
from trainer.text import duration

Event = dict[str, Any]

LOOK_SECONDS = 0.2
ALIVE_SECONDS = 2.0
"""Between two looks whether the run is alive: such a look takes its lock for an instant."""

MADE, NOT_MADE = ("save",), ("save_failed", "not_saved")


def save(run: str, *, pin: bool, wait_seconds: float | None) -> str:
    """Asks a run for a checkpoint; says which it made.

    pin           whether it is to be pinned
    wait_seconds  how long the answer is waited for; None: not at all
    raises        LaunchError when the run is not alive, ends meanwhile, does not answer, or could not save
    """
    folder = find_run(run)
    asked, start = _leave(folder, Asked("save", pin=pin))
    if wait_seconds is None:
        return f"{folder.name} is asked to save; its journal will say so"
    with _patience(folder, asked, wait_seconds) as is_over:
        answer = _wait(folder, start, is_over, lambda event: event["event"] == "request" and event["id"] == asked.id)
        step = answer["step"]
        if not answer["saved"]:
            raise LaunchError(
                f"{folder.name} made no checkpoint of step {step}: {folder / 'train.log'} says why; ask again later"
            )
        what = _wait(
            folder, start, is_over, lambda event: event.get("step") == step and event["event"] in MADE + NOT_MADE
        )
    if what["event"] in NOT_MADE:
        why = what.get("failure") or f"{what.get('tensor')} is not finite"
        raise LaunchError(f"{folder.name} made no checkpoint of step {step} ({why}); fix that, and ask again")
    path = checkpoints_folder(load_resolved(folder / "config.yaml")).with_name(folder.name) / folder_name(step)
    return f"{folder.name} has saved step {step}: {path}{', pinned' if pin else ''}"


def stop(run: str, *, wait_seconds: float | None) -> str:
    """Asks a run to stop with a checkpoint; says how it ended.

    raises  LaunchError when the run is not alive, does not answer, or ended otherwise
    """
    folder = find_run(run)
    asked, start = _leave(folder, Asked("stop"))
    if wait_seconds is None:
        return f"{folder.name} is asked to stop; its outcome.json will say so"
    with _patience(folder, asked, wait_seconds) as is_over:
        while _is_alive(folder):
            is_over(f"{folder.name} has not stopped")
            time.sleep(LOOK_SECONDS)
    outcome = read_outcome(folder)
    words = _how_it_ended(folder)
    if outcome is None or outcome["outcome"] not in (Outcome.INTERRUPTED, Outcome.FINISHED):
        raise LaunchError(f"{words}; `{command_line('report', run)}` says more")
    return words


def _leave(folder: Path, asked: Asked) -> tuple[Asked, int]:
    """Leaves a request where the run is alive; with the end of its journal, after which the answer stands."""
    if not _is_alive(folder):
        raise LaunchError(
            f"nothing trains {folder.name} now ({_how_it_ended(folder)}), so there is nobody to ask to {asked.do}; start it, or look at what it has "
            f"saved: {command_line('checkpoints', 'ls', folder.name)}"
        )
    journal = folder / JOURNAL
    start = journal.stat().st_size if journal.is_file() else 0
    try:
        request_file.leave(folder, asked)
    except OSError as error:
        raise LaunchError(
            f"{folder} cannot be written ({error.strerror}), where a request has to lie; ask whoever may write there, or send SIGUSR1 (save) or "
            "SIGTERM (stop) to the process that started it"
        ) from None
    return asked, start


@contextmanager
def _patience(folder: Path, asked: Asked, seconds: float) -> Iterator[Callable[[str], None]]:
    """Gives what is to be called while one waits, with what is lacking; a request that nobody has taken when the wait ends is taken back."""
    ends = time.monotonic() + seconds

    def is_over(lacking: str) -> None:
        if time.monotonic() > ends:
            taken = (
                "took the request"
                if not request_file.withdraw(folder, asked)
                else "has not taken the request, which is withdrawn"
            )
            raise LaunchError(
                f"{lacking} within {duration(seconds)}, and {taken}: it may be in a long evaluation or stand still; see `{command_line('report', folder.name)}` and "
                f"{folder / 'train.log'}, have its stacks written by SIGUSR2 to the process that started it, or wait longer with --timeout"
            )

    try:
        yield is_over
    except KeyboardInterrupt:
        request_file.withdraw(folder, asked)
        raise


def _wait(folder: Path, start: int, is_over: Callable[[str], None], fits: Callable[[Event], bool]) -> Event:
    """The first event after `start` that fits. raises LaunchError when the run ends without it, or time is over"""
    alive_at = time.monotonic()
    while True:
        is_alive = True
        if time.monotonic() - alive_at > ALIVE_SECONDS:
            is_alive, alive_at = _is_alive(folder), time.monotonic()
        for event in events_from(folder, "request", *MADE, *NOT_MADE, start=start):
            if fits(event):
                return event
        if not is_alive:
            raise LaunchError(f"the run has ended before it answered: {_how_it_ended(folder)}")
        is_over(f"{folder.name} has not answered")
        time.sleep(LOOK_SECONDS)


def _is_alive(folder: Path) -> bool:
    """Whether a run trains, or will again: between two starts its supervisor answers."""
    return supervisor_of(folder) is not None or is_trained(folder)


def _how_it_ended(folder: Path) -> str:
    outcome = read_outcome(folder)
    if outcome is None:
        return f"{folder.name} says nothing of how it ended"
    if outcome["outcome"] == Outcome.RUNNING:
        return f"{folder.name} was killed after step {outcome['step']}"
    return f"{folder.name}: {outcome['outcome']} at step {outcome['step']} ({outcome['reason']})"
