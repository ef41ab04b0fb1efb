"""Where the log of a run goes: console, train.log, and which rank says what."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def open_log(folder: Path, *, is_main: bool, console: logging.Handler) -> None:
    """Sends the story of the run to the console and, from the main process, to train.log; other ranks tell warnings only."""
    # A full disk stops train.log; the console goes on without a traceback for each line.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO if is_main else logging.WARNING)
    rank = os.environ.get("RANK", "0")
    place = "" if is_main else f"[rank {rank}] "
    console.setFormatter(logging.Formatter(f"%(asctime)s {place}%(message)s", "%H:%M:%S"))
    console.addFilter(drop_noise)
    root.addHandler(console)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        file.addFilter(drop_noise)
        root.addHandler(file)


def drop_noise(record: logging.LogRecord) -> bool:
    """Leaves out what Accelerate warns of at every save of a model with tied embeddings: the tie is kept, and a test holds that."""
    return "Removed shared tensor" not in record.getMessage()


def warn_once_per_machine(words: str, *values: str) -> None:
    """Warns of what all processes of a machine know alike, and those of another machine may not: the first of each says it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        log.warning(words, *values)
