"""Fixtures that several rooms share."""

import pytest

from trainer.checkpoint.store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    """An empty store of checkpoints."""
    return CheckpointStore(tmp_path / "checkpoints" / "run")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A temporary folder that the trainer takes for the project's."""
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    return tmp_path
