"""TensorBoard on a free port, and the line that brings it through SSH to the machine where its reader sits."""

import getpass
import hashlib
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError

FIRST_TAB = "#custom_scalars"
"""Where the charts stand in the order in which a person asks; TensorBoard's own first tab has every tag in the order of the alphabet."""

FIRST_PORT, NUM_PORTS = 6006, 100
"""Ports that are tried, the usual one first."""

SAMPLES_PER_PLUGIN = "scalars=5000,histograms=200,text=500"
"""Points that TensorBoard keeps of a curve: its own 1,000 are few for a month."""


@dataclass(frozen=True)
class Board:
    """How TensorBoard is started, and what its reader should know."""

    command: list[str]
    hint: str


def board(folder: Path, port: int | None, environment: Mapping[str, str]) -> Board:
    """Opens `folder`, all runs or one, on this machine only.

    raises TrainerError when the port, or every usual one, is taken
    """
    chosen = _free_port(port)
    shown = _named(folder) if any(folder.glob("events.out.tfevents.*")) else folder
    program = [sys.executable, "-P", "-m", "tensorboard.main"]
    place = ["--logdir", str(shown), "--host", "127.0.0.1", "--port", str(chosen), "--window_title", folder.name]
    points = ["--samples_per_plugin", SAMPLES_PER_PLUGIN, "--reload_interval", "15"]
    hint = (
        f"TensorBoard of {folder}: http://localhost:{chosen}/{FIRST_TAB}  (Ctrl+C ends it; the run goes on)\n"
        f"From another machine: ssh -N -L {chosen}:localhost:{chosen} {_address(environment)}  and the same address there"
    )
    return Board([*program, *place, *points], hint)


def _named(run: Path) -> Path:
    """A folder that holds a link to the run and nothing else: TensorBoard would call the run `.` in every legend.

    It lies among the temporary files of this user, the same for the same run, so that nothing piles up.
    """
    target = run.resolve()
    home = Path(tempfile.gettempdir()) / f"trainer-tensorboard-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.lstat().st_uid != os.getuid():
        return run  # somebody else's: the name is not worth a risk
    view = home / hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    view.mkdir(exist_ok=True)
    link = view / target.name
    if not link.is_symlink():
        link.symlink_to(target, target_is_directory=True)
    return view


def _free_port(wanted: int | None) -> int:
    candidates = [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + NUM_PORTS)
    for port in candidates:
        if _is_free(port):
            return port
    taken = f"port {wanted} is" if wanted else f"the ports {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} are"
    raise TrainerError(f"{taken} taken; give another with --port, or end what uses it")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Or a TensorBoard that ended just now would hold its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _address(environment: Mapping[str, str]) -> str:
    """user@host as the reader reaches it: by the address that an SSH session came in at, else by this machine's name."""
    connection = environment.get("SSH_CONNECTION", "").split()
    return f"{_user()}@{connection[2] if len(connection) == 4 else socket.gethostname()}"


def _user() -> str:
    """The user's name; in a container its number may have none, and the reader puts in what reaches the machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return "USER"


def show(opened: Board) -> None:
    """Becomes TensorBoard: this process's signals and exit code are its own."""
    os.execv(opened.command[0], opened.command)
