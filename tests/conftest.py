"""Fixtures that several rooms share."""

import signal

import pytest

from trainer.checkpoint.store import CheckpointStore

# A shell starts what it puts into the background with SIGINT and SIGQUIT ignored, nohup what it starts with SIGHUP ignored, and
# everything below would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def store(tmp_path):
    """An empty store of checkpoints."""
    return CheckpointStore(tmp_path / "checkpoints" / "run")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A temporary folder that the trainer takes for the project's."""
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    return tmp_path
