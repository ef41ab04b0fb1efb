"""Where a selftest and a bench take place, when the disk has no place for them."""

import errno
import tempfile
from pathlib import Path

import pytest

from tests.messages import refuses
from trainer import lease
from trainer.config.load import load
from trainer.errors import LaunchError
from trainer.tools.trial.sandbox import sandbox_of


@pytest.mark.parametrize(
    ("owner", "name", "word"),
    [(tempfile, "mkdtemp", "runs"), (lease, "write_record", "lock"), (Path, "mkdir", "checkpoints")],
)
def test_a_disk_that_takes_nothing_is_a_paragraph_and_no_half_of_a_place_is_left(
    project, monkeypatch, owner, name, word
):
    real = getattr(owner, name)

    def full(*arguments, **keywords):
        if word in f"{arguments} {keywords}":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, full)
    places = (project / "runs", project / "checkpoints", "No space left on device")
    with refuses(LaunchError, *places), sandbox_of(load("shakespeare", []).config, "selftest", print):
        raise AssertionError("it goes on without a place")
    assert not list(project.glob("*/.selftest-*"))
