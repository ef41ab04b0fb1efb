"""Why a rank failed, left for the other ranks of the launch.

What the others see is a connection that breaks, or nothing at all. So a rank that fails leaves its reason in the run's folder before it
ends, and the others take it for theirs: the person reads one paragraph, or one traceback, and outcome.json says the same.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import files
from trainer.ending.causes import is_of_a_connection, says_peer_is_gone
from trainer.ending.outcomes import Outcome
from trainer.errors import RankLostError

PATIENCE_SECONDS = 3.0
"""How long a rank waits for the reason of another before it gives its own: folders may be on another machine."""

_NOTE = ".failed-rank-"


@dataclass(frozen=True)
class RankFailure:
    """Why one rank failed; `outcome` is what this means for the run."""

    rank: int
    pid: int
    group: str
    outcome: Outcome
    reason: str


def leave_failure(folder: Path, outcome: Outcome, reason: str) -> None:
    """Leaves why this rank fails where the others look; a rank that is alone leaves nothing."""
    if _world_size() > 1:
        failure = RankFailure(_rank(), os.getpid(), _group(), outcome, reason)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / f"{_NOTE}{failure.rank}", json.dumps(asdict(failure)))


def read_failure(folder: Path, rank: int) -> RankFailure | None:
    """What a rank left; None when it left nothing, or nothing whole."""
    try:
        content = json.loads((folder / f"{_NOTE}{rank}").read_text(encoding="utf-8"))
        return RankFailure(**{**content, "outcome": Outcome(content["outcome"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def failure_of_others(folder: Path) -> RankFailure | None:
    """The first that another rank of this launch has left by now; None when none has."""
    failures = (read_failure(folder, rank) for rank in range(_world_size()) if rank != _rank())
    return next((failure for failure in failures if failure and failure.group == _group()), None)


def lost_to(failure: RankFailure) -> RankLostError:
    """The error of a rank that ends because another failed, which says why itself."""
    return RankLostError(f"rank {failure.rank}: {failure.reason}", outcome=failure.outcome, was_said=True)


def sweep_failures(folder: Path, *, others_wait: bool = False) -> None:
    """Removes what earlier launches left, and keeps what a quicker rank of this one has left already.

    others_wait  whether no other rank can have left anything yet: then all is removed, since an earlier launch may have met at the same port
    """
    for path in folder.glob(f"{_NOTE}*"):
        failure = read_failure(folder, int(path.name.removeprefix(_NOTE)))
        if others_wait or failure is None or failure.group != _group():
            path.unlink(missing_ok=True)


def withdraw_failure(folder: Path) -> None:
    """Removes what this very rank left in an earlier launch; called before the ranks meet, so that none takes it for one of this launch."""
    (folder / f"{_NOTE}{_rank()}").unlink(missing_ok=True)


def said_by_lower_rank(folder: Path) -> bool:
    """Whether a rank before this one says why the run ends; what all ranks find wrong alike, the first of them says."""
    return _wait_for_failure(folder, range(_rank())) is not None


@contextmanager
def broken_connections_explained(folder: Path) -> Iterator[None]:
    """A connection to another rank that breaks in this block becomes a RankLostError with that rank's reason.

    Where no rank left one and the error does not say that one is gone, it stays what it is: a programmer has to look at it.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_a_connection(error):
            raise
        if failure := _wait_for_failure(folder, (rank for rank in range(_world_size()) if rank != _rank())):
            raise lost_to(failure) from None
        if not says_peer_is_gone(error):
            raise
        raise RankLostError(
            f"the connection to another process of this run broke ({_first_sentence(error)}), and that process did not say why: it was "
            "killed (out of memory? the kernel's log says: dmesg), or its machine or the network is gone; start it again to continue"
        ) from None


def _first_sentence(error: RuntimeError) -> str:
    """What went wrong, without the place in torch's source before it and the advice after it."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^\[[^]]*\] ", "", line).split(". ")[0]


def _wait_for_failure(folder: Path, ranks: Iterable[int]) -> RankFailure | None:
    """The first that one of these ranks leaves, in this launch; None when none does in the time that it would take."""
    wanted = list(ranks)
    ends = time.monotonic() + PATIENCE_SECONDS
    while wanted:
        for failure in (read_failure(folder, rank) for rank in wanted):
            if failure and failure.group == _group():
                return failure
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
