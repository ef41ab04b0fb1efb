"""A person is told of a run that ends, goes on and finishes, and the address to which that goes stands in no file of the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alert_server import taking_alerts
from tests.commands import paragraph, trainer
from tests.launching import PROJECT, environment, outcome, train, write_cluster, write_recipe
from trainer.journal import read_events

SECRET = b"xyzSECRETxyz"

FAULT = """
from trainer import loop
from pathlib import Path
whole, once = loop.accumulate_gradients, Path(__file__).with_name("was_raised")

def accumulate(run, batch):
    if run.progress.step == 6 and not once.exists():
        once.touch()
        raise ValueError("planted <at> once")
    return whole(run, batch)

loop.accumulate_gradients = accumulate
"""


def files_with(folder: Path, secret: bytes) -> list[Path]:
    """Every file below a folder that holds these bytes; the recipe may."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "tiny.yaml"]
    assert any(path.suffix == ".safetensors" for path in files) and any("tfevents" in path.name for path in files)
    return [path for path in files if secret in path.read_bytes()]


def test_a_crash_a_restart_and_the_end_are_told_and_the_address_is_written_nowhere(tmp_path):
    (tmp_path / "planted.py").write_text(FAULT)
    with taking_alerts() as server:
        server.answers = [500]
        recipe = write_recipe(tmp_path, alerts={"webhook": server.url, "every_minutes": 0}, plugins=["planted"])
        words = [str(write_cluster(tmp_path, 1)), str(recipe), "restart.enabled=true", "max_steps=8"]
        variables = {**environment(), "PYTHONPATH": os.pathsep.join((str(tmp_path), str(PROJECT)))}
        command = [sys.executable, "-m", "trainer", "launch", *words]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, timeout=200, check=False)
    (tmp_path / "launch.log").write_bytes(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr.decode()
    assert [message["event"] for message in server.received] == ["crash", "restart", "finished"]
    assert "planted <at> once" in server.received[0]["text"] and server.received[0]["run"] == "tiny"
    assert not read_events(tmp_path / "runs" / "tiny", "alert_failed")
    shown = trainer("train", str(recipe), "--show-config")
    assert shown.code == 0 and SECRET.decode() not in shown.out + shown.err
    assert trainer("fork", str(tmp_path / "runs" / "tiny"), "--name", "branch", "max_steps=9").code == 0
    assert files_with(tmp_path, SECRET) == []


def test_an_address_that_does_not_answer_harms_no_run_and_is_no_reason_to_wait(tmp_path):
    with taking_alerts() as server:
        pass
    recipe = write_recipe(tmp_path, alerts={"webhook_env": "HOOK"}, max_steps=4)
    os.environ["HOOK"] = server.url
    try:
        train(recipe)
    finally:
        del os.environ["HOOK"]
    assert outcome(recipe)["outcome"] == "finished"
    (failed,) = read_events(tmp_path / "runs" / "tiny", "alert_failed")
    assert (failed["kind"], failed["target"]) == ("finished", "webhook")
    assert SECRET.decode() not in json.dumps(failed)


@pytest.fixture
def hook(monkeypatch):
    with taking_alerts() as server:
        monkeypatch.setenv("HOOK", server.url)
        yield server


def test_a_person_can_try_it(tmp_path, hook):
    recipe = write_recipe(tmp_path, alerts={"webhook_env": "HOOK", "command": ["false"]})
    said = trainer("alerts", "test", str(recipe))
    assert said.code == 1 and [line.partition(":")[0] for line in said.out.splitlines()] == ["webhook", "command"]
    assert [message["event"] for message in hook.received] == ["test"]
    recipe = write_recipe(tmp_path, alerts={"webhook_env": "HOOK"})
    assert trainer("alerts", "test", str(recipe)).code == 0 and len(hook.received) == 2
    recipe = write_recipe(tmp_path, alerts={"webhook_env": "NOT_SET", "command": ["true"]})
    assert trainer("alerts", "test", str(recipe)).code == 1
    said = trainer("alerts", "test", str(write_recipe(tmp_path)))
    assert said.code == 2 and "alerts.webhook_env" in paragraph(said.err)
    said = trainer("alerts", "test", "no-such-run")
    assert said.code == 2 and paragraph(said.err)
