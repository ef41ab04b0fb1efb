"""`python -m trainer ...`, and the `trainer` command."""

import os
import sys

from trainer import start
from trainer.streams import say


def main() -> None:
    """The command `trainer` of an environment: runs the code that is installed there, though PYTHONPATH may have brought another's."""
    installed = start.installed_package()
    if installed is not None and installed != start.PACKAGE:
        script = installed / "start.py"
        if not script.is_file():
            say(
                f"error: {sys.argv[0]} is the command of {installed}, and PYTHONPATH puts {start.PACKAGE} in its place; take {start.PACKAGE.parent} "
                "out of PYTHONPATH, or start the command of that one"
            )
            sys.exit(2)
        os.execv(sys.executable, [sys.executable, "-P", str(script), "trainer", *sys.argv[1:]])
    _run()


def _run() -> None:
    if sys.flags.optimize > 1:
        # transformers reads docstrings when it is imported, and -OO leaves them out.
        why = "with 2 (-OO) there are no docstrings, and transformers cannot be imported without them"
        say(f"going on with PYTHONOPTIMIZE=1: {why}")
        os.execve(sys.executable, start.command("trainer", *sys.argv[1:]), {**os.environ, "PYTHONOPTIMIZE": "1"})
    # For those that multiprocessing starts, which the command of an environment gives no -P.
    os.environ.update(start.SAFE_PATH)
    from trainer.cli import main as run

    run()


if __name__ == "__main__":
    _run()
