"""Fixtures that several commands' tests share."""

from dataclasses import replace

import pytest

from trainer import launcher


@pytest.fixture
def without_a_launcher(monkeypatch):
    """Each launch of one process is the rank itself: the seconds of `accelerate launch` are saved where it is not what is tested."""
    checked = launcher.plan

    def plan(words):
        made = checked(words)
        return replace(made, command=[made.command[0], *made.command[made.command.index("trainer") - 1 :]])

    monkeypatch.setattr(launcher, "plan", plan)
