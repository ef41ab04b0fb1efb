"""What can go wrong, in the words of the person who has to fix it.

    TrainerError              one paragraph for a person, no traceback; exit code 2, or 1 once a run trains
      ConfigError             a recipe, an override or a cluster file is not right
      DataError               a source, a shard or a tokenizer is not what was asked for
      HubError                a model, a tokenizer or a dataset of the hub cannot be had, or may not be used
      CheckpointError         nothing sound to resume from, or a folder that is not a checkpoint of this run
        NoRoomError           a disk without room for the checkpoints of this run, or a quota that is used up
      LaunchError             the processes that started are not those the cluster file describes
      RankLostError           another process of the run failed, or is gone
      PrecisionError          the precision asked for cannot be had, and a fallback was refused
      OutOfMemoryError        a GPU's memory, or the machine's, does not hold what the run needs

A message says what is wrong with its name and value, what was expected, and what to do. Programmers get `assert` and a
traceback instead.
"""

import errno
import re


class TrainerError(Exception):
    """Ends the command with its message as one paragraph."""

    exit_code = 2
    """What the command ends with; 1 where a run had begun to train."""

    was_said = False
    """Whether another process of the run says these words, so that this one ends without a word."""


class ConfigError(TrainerError):
    """A recipe, an override or a cluster file is not right. Holds every problem found, not the first."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(TrainerError):
    """A source, a shard or a tokenizer is not what was asked for."""


class HubError(TrainerError):
    """A model, a tokenizer or a dataset of the hub cannot be had, or may not be used."""


class CheckpointError(TrainerError):
    """There is nothing sound to resume from, or a folder is not a checkpoint of this run."""


class NoRoomError(CheckpointError):
    """A disk has no room for the checkpoints of this run, or a quota is used up."""


class LaunchError(TrainerError):
    """The processes that started are not those the cluster file describes."""


class RankLostError(TrainerError):
    """Another process of the run failed, or is gone; `outcome` is what this means for the run (ending/outcomes.py)."""

    def __init__(self, reason: str, *, outcome: str = "failed", was_said: bool = False) -> None:
        super().__init__(reason)
        self.outcome, self.was_said = outcome, was_said


class PrecisionError(TrainerError):
    """The precision asked for cannot be had, and a fallback was refused."""


class OutOfMemoryError(TrainerError):
    """A GPU's memory, or the machine's, does not hold what the run needs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the machine's own memory is used up: Python's, torch's for CPUs, the C++ library's, the system's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_said = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or is_said


_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator: |std::bad_alloc|Cannot allocate memory")
