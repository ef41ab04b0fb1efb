import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from torch.utils.tensorboard import SummaryWriter

from tests.launching import PROJECT
from tests.messages import refuses
from trainer import tensorboard
from trainer.errors import TrainerError
from trainer.tensorboard import board


@contextlib.contextmanager
def taken(port=0):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield listener.getsockname()[1]


def port_of(opened):
    return int(opened.command[opened.command.index("--port") + 1])


def test_the_first_free_port_is_taken_and_the_tunnel_leads_to_it(monkeypatch):
    with taken() as port:
        monkeypatch.setattr(tensorboard, "FIRST_PORT", port)
        monkeypatch.setattr(tensorboard.getpass, "getuser", lambda: "ada")
        opened = board(Path("runs"), None, {"SSH_CONNECTION": "10.0.0.7 51000 10.0.0.9 22"})
    assert port < port_of(opened) < port + 20
    assert f"ssh -N -L {port_of(opened)}:localhost:{port_of(opened)} ada@10.0.0.9 " in opened.hint
    assert f"http://localhost:{port_of(opened)}/#custom_scalars " in opened.hint
    assert socket.gethostname() in board(Path("runs"), None, {}).hint


def test_a_port_that_is_taken_is_refused(monkeypatch):
    with taken() as port:
        with refuses(TrainerError, f"port {port}", "--port"):
            board(Path("runs"), port, {})
        monkeypatch.setattr(tensorboard, "FIRST_PORT", port)
        monkeypatch.setattr(tensorboard, "NUM_PORTS", 1)
        with refuses(TrainerError, f"{port} to {port}"):
            board(Path("runs"), None, {})


def logdir_of(opened):
    return Path(opened.command[opened.command.index("--logdir") + 1])


def test_a_single_run_is_shown_under_its_name_and_nothing_piles_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name in ("mine", "yours"):
        SummaryWriter(str(tmp_path / "runs" / name)).close()
    shown = [logdir_of(board(tmp_path / "runs" / name, None, {})) for name in ("mine", "mine", "yours")]
    assert shown[0] == shown[1] != shown[2]
    assert [path.name for path in shown[0].iterdir()] == ["mine"]
    assert (shown[0] / "mine").resolve() == tmp_path / "runs" / "mine"
    assert logdir_of(board(tmp_path / "runs", None, {})) == tmp_path / "runs"
    assert len(list((tmp_path / "temporary").glob("*/*"))) == 2


def test_a_folder_of_somebody_else_among_the_temporary_files_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.tempfile, "gettempdir", lambda: str(tmp_path))
    SummaryWriter(str(tmp_path / "mine")).close()
    (tmp_path / "trainer-tensorboard-4711").mkdir()
    monkeypatch.setattr(tensorboard.os, "getuid", lambda: 4711)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    opened = board(tmp_path / "mine", None, {})
    assert logdir_of(opened) == tmp_path / "mine"
    assert " USER@" in opened.hint, "the number 4711 has no name, as in a container"


def test_the_command_becomes_tensorboard_and_it_answers(tmp_path):
    with SummaryWriter(str(tmp_path / "mine")) as writer:
        writer.add_scalar("Loss/train", 1.5, 1)
    with taken() as port:
        pass
    command = [sys.executable, "-m", "trainer", "tensorboard", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    ) as process:
        servers = []
        try:
            tags = _tags(f"http://localhost:{port}/data/plugin/scalars/tags")
            servers = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        finally:
            process.send_signal(signal.SIGTERM)
        left = psutil.wait_procs(servers, timeout=20)[1]
        for server in left:
            server.kill()  # it would hold the pipe
        said = process.stderr.read().decode()
    assert left == [], "a SIGTERM leaves no server behind"
    assert list(tags["mine"]) == ["Loss/train"]
    assert f"TensorBoard of {tmp_path}: http://localhost:{port}/#custom_scalars " in said


def _tags(url, seconds=60.0):
    """The tags of every run, once TensorBoard has read one."""
    ends = time.monotonic() + seconds
    while True:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(url, timeout=5) as answer,
        ):
            if found := json.loads(answer.read()):
                return found
        assert time.monotonic() < ends, "TensorBoard did not answer"
        time.sleep(0.1)
