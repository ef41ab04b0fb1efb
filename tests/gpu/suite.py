"""Part `suite`: pytest tests/gpu, in which everything is skipped without a GPU."""

import functools
import subprocess
import sys
import xml.etree.ElementTree as xml
from typing import Any

from tests.gpu.record import Record
from tests.gpu.runs import Scene
from tests.launching import PROJECT


def measure(scene: Scene, record: Record) -> None:
    """None may fail, and on a GPU some must have run; those of recipes that the GPU lacks are skipped."""
    found = record.piece("pytest", functools.partial(_run, scene))
    if found:
        names = found["failed"]
        record.check("tests that fail", ", ".join(names) or 0, "none", held=not names)
        record.check("tests that pass", found["passed"], "at least one", held=found["passed"] > 0 or scene.emulated)


def _run(scene: Scene) -> dict[str, Any]:
    scene.work.mkdir(parents=True, exist_ok=True)
    report = scene.work / "report.xml"
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", f"--junitxml={report}"]
    ended = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert report.exists(), f"pytest ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    cases = list(xml.parse(report).getroot().iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    if failed:
        print(ended.stdout[-6000:], flush=True)
    return {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}
