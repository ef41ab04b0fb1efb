"""A run in which torch tells every wait of the host for the device in a few steps: what no CPU can show of a step that should have none.

    python -m tests.gpu.syncs FILE train RECIPE ...

does what `python -m trainer train RECIPE ...` does, and writes to FILE how often each place waited in the steps FIRST to LAST. Reading an
event that has happened, as the loop does with a step's numbers, is no such wait.
"""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

FIRST, LAST = 11, 13
SYNCHRONIZES = "called a synchronizing"
"""What torch's warnings of a wait have in common."""


def watch(path: Path) -> None:
    """Lets the next run of this process be watched."""
    from trainer import loop

    report, seen = loop.report, Counter()
    tell = warnings.showwarning

    def count(message: Any, category: type, filename: str, lineno: int, *rest: Any) -> None:
        if SYNCHRONIZES in str(message):
            seen[f"{'/'.join(Path(filename).parts[-2:])}:{lineno}"] += 1
        else:
            tell(message, category, filename, lineno, *rest)

    def reported(run: Any, *arguments: Any) -> Any:
        known = report(run, *arguments)
        if run.progress.step == FIRST - 1:
            warnings.simplefilter("always")
            warnings.showwarning = count
            _tell_waits("warn")
        if run.progress.step == LAST:
            _tell_waits("default")
            warnings.showwarning = tell
            path.write_text(json.dumps({"steps": LAST - FIRST + 1, "waits": dict(seen)}))
        return known

    loop.report = reported


def _tell_waits(mode: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(mode)


if __name__ == "__main__":
    from trainer.cli import main

    watch(Path(sys.argv.pop(1)))
    sys.argv[0] = "trainer"
    main()
