"""What is written down of a hang."""

import os
import sys

from trainer.safety import hang
from trainer.safety.hang import native_stacks


def test_where_py_spy_may_look_the_frames_below_python_are_there_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    assert native_stacks(7) == ""
    spy = tmp_path / "py-spy"
    for script, said in (("echo $*", "dump --native --pid 7\n"), ("echo no >&2; exit 1", ""), ("exec sleep 60", "")):
        monkeypatch.setattr(hang, "NATIVE_SECONDS", 0.5 if said == "" else 10.0)
        spy.write_text(f"#!/bin/sh\n{script}\n")
        spy.chmod(0o755)
        assert native_stacks(7) == said
