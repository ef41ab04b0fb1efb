"""Fixtures that several commands' tests share."""

from dataclasses import replace

import pytest

from trainer import launcher


@pytest.fixture
def without_a_launcher(monkeypatch):
    """Each launch of one process is the rank itself: the seconds of `accelerate launch` are saved where it is not what is tested."""
    check = launcher.check_launch

    def check_launch(words):
        checked = check(words)
        return replace(checked, command=[checked.command[0], *checked.command[checked.command.index("trainer") - 1 :]])

    monkeypatch.setattr(launcher, "check_launch", check_launch)
