"""What a launch does about a hang: it looks at the ranks while it waits, and where they hang writes down where, and ends them."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from trainer.beats import BEATS, Board
from trainer.config.unattended import HangConfig
from trainer.journal import Journal
from trainer.safety.forward import kill_launch
from trainer.safety.hang_watch import Hang, HangWatch, is_stopped
from trainer.safety.stacks import gather

log = logging.getLogger(__name__)

HANGS = "hangs"
"""The folder in runs/NAME with the stacks of each."""

LOOK_SECONDS = 1.0

NATIVE_SECONDS = 10.0
"""How long py-spy may take for one rank."""


@dataclass(frozen=True)
class Watch:
    """How a launch sees its ranks; where memory has no room for their signs of life it sees nothing."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """What the ranks need to be seen."""
    look: Callable[[], Hang | None] = lambda: None
    """Whether they hang."""
    ranks: Callable[[], list[psutil.Process]] = list
    """Those that are there, also without a launcher."""


@contextmanager
def watched(settings: HangConfig, num_ranks: int) -> Iterator[Watch]:
    """While the block runs, the ranks of a launch can be seen; hangs are looked for where the settings say so."""
    try:
        board = Board(num_ranks)
    except OSError as error:
        log.warning("the ranks are not watched for hangs: no room for their signs of life (%s)", error)
        yield Watch()
        return
    with board:
        look = HangWatch(settings, board.read, num_ranks).look if settings.enabled else Watch.look
        yield Watch(board.environment, look, lambda: _ranks(board))


def _ranks(board: Board) -> list[psutil.Process]:
    """The processes that say their signs of life on this board, by their environment: a number alone may be another process's by now."""
    found = []
    for beat in board.read().values():
        try:
            process = psutil.Process(beat.pid)
            if process.environ().get(BEATS) == str(board.path):
                found.append(process)
        except psutil.Error:  # it has ended
            pass
    return found


def native_stacks(pid: int) -> str:
    """The stacks of a process with the frames below Python, where py-spy is installed and may look at it; else nothing."""
    program = shutil.which(
        "py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    )
    if program is None:
        return ""
    command = [program, "dump", "--native", "--pid", str(pid)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=NATIVE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout


def end_hang(folder: Path, launcher: int, hang: Hang) -> str:
    """Writes the stacks of all ranks into the run's folder, ends them with their launcher (a process), and says which rank was behind, as a sentence.

    By SIGKILL: SIGTERM asks for the next step, which does not come. The writer lives on, and commits what is in memory.
    """
    pids = {rank: beat.pid for rank, beat in hang.beats.items()}
    stopped = [rank for rank, pid in pids.items() if is_stopped(pid)]
    answering = {rank: pid for rank, pid in pids.items() if rank not in stopped}
    stacks = gather(folder, answering)
    for rank in stopped:
        stacks |= gather(folder, {rank: pids[rank]}, seconds=2.0, wake=True)
    ranks = stopped or [rank for rank in hang.ranks if rank not in stacks] or list(hang.ranks)
    states = dict.fromkeys(stopped, "it was suspended (SIGSTOP)")
    states |= {rank: "it wrote no stack: it is stuck in the system" for rank in pids if rank not in stacks}
    path = folder / HANGS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.txt"
    told = [f"{hang.words}\n"]
    for rank, beat in sorted(hang.beats.items()):
        told.append(
            f"rank {rank}, process {beat.pid}, {beat.phase} after step {beat.step}. {states.get(rank, '')}\n{stacks.get(rank, '')}"
            f"{native_stacks(beat.pid)}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(told), encoding="utf-8")
    except OSError as error:
        log.warning("%s could not be written: %s", path, error)
    kill_launch(launcher)
    step = max(beat.step for beat in hang.beats.values())
    phase = hang.beats[ranks[0]].phase
    Journal(folder).write(
        "hang", ranks=ranks, rank=ranks[0], phase=phase, step=step, seconds=round(hang.seconds, 1), stacks=str(path)
    )
    why = f"; {states[ranks[0]]}" if ranks[0] in states else ""
    return f"hang: {hang.words}{why}; behind is rank {', '.join(map(str, ranks))}; the stacks of all are in {path}"
