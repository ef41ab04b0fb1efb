"""tests/gpu/run on a CPU: every part that trains goes through its code with a tiny model and the stand-in, and is nowhere called a measurement."""

import json

import pytest

from tests import emulation
from tests.accelerators import forget_accelerator
from tests.gpu import __main__ as command
from tests.gpu.runs import Scene

PARTS = {
    "first": [],
    "probe": ["current", "delayed", "block"],
    "share": ["block"],
    "gap": ["delayed"],
    "resume": ["current"],
    "switch": ["current"],
    "speed": ["block", "delayed"],
    "stall": [],
}
"""By part, the recipes that are gone through here; the others differ in nothing but their name."""


LONG = ("first", "gap", "resume", "speed", "switch")
"""The parts of which the fast set has none: the others go the same way through the program."""


@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.long if part in LONG else ()) for part in PARTS])
def test_a_part_goes_through_emulated_and_says_so(part, tmp_path, monkeypatch, capsys):
    chosen = [recipe for recipe in Scene(True, tmp_path).recipes() if recipe.name in PARTS[part]]
    monkeypatch.setattr(Scene, "recipes", lambda scene: chosen)
    try:
        code = command.main(["--emulate", part, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    finally:
        emulation.uninstall()
        forget_accelerator()
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / f"gpu_{part}.json").read_text())
    assert code == 0, said
    assert "nothing here is fp8" in said
    assert found["emulated"]
    assert found["hardware"]["device"] == "CPU, fp8 emulated"
    assert found["complete"]
    assert found["checks"]
    assert all(check["held"] for check in found["checks"])
    assert "fp8" not in [check["value"] for check in found["checks"]]
    assert not list((tmp_path / "work").rglob("tiny.yaml")), "what was measured is removed"
    if part == "speed":
        assert list(found["pieces"]) == [
            "linears 192 block",
            "step 192 block",
            "linears 192 delayed",
            "step 192 delayed",
        ], "delayed slows what follows"
        ways = found["pieces"]["step 192 delayed"]["ways"]
        assert list(ways) == ["bf16", "bf16 compiled", "delayed"]
        assert all(way["milliseconds"] > 0 for way in ways.values())
        assert "multiples of 128" in found["pieces"]["step 192 block"]["ways"]["block"]["not_applicable"]
