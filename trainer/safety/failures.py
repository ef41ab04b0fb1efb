"""Why a run ended: the rank where it began tells the others, and the launcher tells `trainer launch` what it saw.

What the other ranks see is a connection that breaks, or nothing at all. So a rank that fails leaves its reason in the run's folder
before it ends, and the others take it for theirs: the person reads one paragraph, or one traceback, and outcome.json says the same.
A rank that is killed leaves nothing. Its launcher knows the signal, and sends it through a pipe, which needs no room on any disk.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import files
from trainer.errors import RankLostError

PATIENCE_SECONDS = 3.0
"""How long a rank waits for the words of another before it speaks itself: folders may be on another machine."""

FAILURE_PIPE = "TRAINER_FAILURE_PIPE"
"""Holds the number of the open pipe through which a launcher tells what it saw."""

_NOTE = ".failed-rank-"

_GONE = ("by peer", "broken pipe", "remote process", "got 0 bytes")
"""How gloo, NCCL and the store say that the other end is no more."""


@dataclass(frozen=True)
class Cause:
    """Why one rank failed, in its own words; `kind` is the outcome of the run that this means."""

    rank: int
    pid: int
    group: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """The first process of a launch that failed, as its launcher saw it."""

    rank: int
    pid: int
    exit_code: int
    """Negative: the number of the signal that ended it."""

    @property
    def was_killed(self) -> bool:
        return self.exit_code < 0


def send_failure(failure: Failure) -> None:
    """Tells `trainer launch`, where it is that which started this launcher."""
    if pipe := os.environ.get(FAILURE_PIPE):
        os.write(int(pipe), json.dumps(asdict(failure)).encode())


def receive_failure(pipe: int) -> Failure | None:
    """What the launcher, which has ended, sent through this pipe; None when nothing failed, or when it could not send."""
    os.set_blocking(pipe, False)
    try:
        return Failure(**json.loads(os.read(pipe, 65536)))
    except (BlockingIOError, ValueError):
        return None


def how_it_ended(who: str, exit_code: int) -> str:
    """What is known of a process that ended without a word of its own, and what to do."""
    if exit_code >= 0:
        return f"{who} ended with exit code {exit_code} before it could note why; what it printed says more"
    name = next((known.name for known in signal.Signals if known == -exit_code), f"signal {-exit_code}")
    hint = " (out of memory? the kernel's log says: dmesg)" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{hint}; start it again to continue"


def leave_cause(folder: Path, kind: str, reason: str) -> None:
    """Leaves why this rank fails where the others look; a rank that is alone has nobody to tell."""
    if _world_size() > 1:
        cause = Cause(_rank(), os.getpid(), _group(), kind, reason)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / f"{_NOTE}{cause.rank}", json.dumps(asdict(cause)))


def read_cause(folder: Path, rank: int) -> Cause | None:
    """What a rank left; None when it left nothing, or nothing whole."""
    try:
        return Cause(**json.loads((folder / f"{_NOTE}{rank}").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def cause_of_others(folder: Path) -> Cause | None:
    """The first cause that another rank of this launch has left by now; None when none has."""
    causes = (read_cause(folder, rank) for rank in range(_world_size()) if rank != _rank())
    return next((cause for cause in causes if cause and cause.group == _group()), None)


def lost_to(cause: Cause) -> RankLostError:
    """The error of a rank that ends because another failed, which says why itself."""
    return RankLostError(f"rank {cause.rank}: {cause.reason}", kind=cause.kind, was_said=True)


def sweep_causes(folder: Path, *, others_wait: bool = False) -> None:
    """Removes what earlier launches left, and keeps what a quicker rank of this one has left already.

    others_wait  whether no other rank can have left anything yet: then all is removed, since an earlier launch may have met at the same port
    """
    for path in folder.glob(f"{_NOTE}*"):
        cause = read_cause(folder, int(path.name.removeprefix(_NOTE)))
        if others_wait or cause is None or cause.group != _group():
            path.unlink(missing_ok=True)


def withdraw_cause(folder: Path) -> None:
    """Removes what this very rank left in an earlier launch; called before the ranks meet, so that none takes it for one of this launch."""
    (folder / f"{_NOTE}{_rank()}").unlink(missing_ok=True)


def said_by_lower_rank(folder: Path) -> bool:
    """Whether a rank before this one says why the run ends; what all ranks find wrong alike, the first of them says."""
    return _wait_for_cause(folder, range(_rank())) is not None


@contextmanager
def broken_connections_explained(folder: Path) -> Iterator[None]:
    """A connection to another rank that breaks in this block becomes a RankLostError with that rank's reason.

    Where no rank left one and nothing says that one is gone, the error stays what it is: a programmer has to look at it.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        if cause := _wait_for_cause(folder, (rank for rank in range(_world_size()) if rank != _rank())):
            raise lost_to(cause) from None
        if not any(words in str(error).lower() for words in _GONE):
            raise
        raise RankLostError(
            f"the connection to another process of this run broke ({_first_sentence(error)}), and that process did not say why: it was "
            "killed (out of memory? the kernel's log says: dmesg), or its machine or the network is gone; start it again to continue"
        ) from None


def _is_of_a_connection(error: RuntimeError) -> bool:
    from torch.distributed import DistError  # what NCCL and the store raise; gloo raises plain RuntimeErrors

    return isinstance(error, DistError) or "gloo" in str(error).lower()


def _first_sentence(error: RuntimeError) -> str:
    """What went wrong, without the place in torch's source before it and the advice after it."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^\[[^]]*\] ", "", line).split(". ")[0]


def _wait_for_cause(folder: Path, ranks: Iterable[int]) -> Cause | None:
    """The first cause that one of these ranks leaves, in this launch; None when none does in the time that it would take."""
    wanted = list(ranks)
    ends = time.monotonic() + PATIENCE_SECONDS
    while wanted:
        for cause in (read_cause(folder, rank) for rank in wanted):
            if cause and cause.group == _group():
                return cause
        if time.monotonic() > ends:
            return None
        time.sleep(0.05)
    return None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _group() -> str:
    """Names this launch among others of the same run: the place where its ranks met."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
