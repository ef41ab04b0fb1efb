"""Fixtures that several rooms share."""

import multiprocessing
import os
import signal

import pytest
import yaml

from trainer.config.waiting import waiting

# Two tests run at a time, on machines of two cores: a computation of the tests' size is fastest in one thread, and threads that wait for
# each other must not spin in vain. OpenMP reads both when torch is first imported, so no import of torch may come before this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(waiting(os.environ))
# A crash that a test plants is what it looks at; tests of restarts ask for them.
os.environ["TRAINER_RESTART"] = "off"

from trainer.checkpoint.format.store import CheckpointStore

# Whichever test starts the server that ranks are forked from, it has imported what each of them would take seconds to import.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preload"])

# A shell starts what it puts into the background with SIGINT and SIGQUIT ignored, nohup what it starts with SIGHUP ignored, and
# everything below would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CLUSTER = {"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "no", "use_cpu": True}
"""A cluster file that is right."""


@pytest.fixture
def store(tmp_path):
    """An empty store of checkpoints."""
    return CheckpointStore(tmp_path / "checkpoints" / "run")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A temporary folder that the trainer takes for the project's."""
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def cluster(tmp_path):
    """Writes a cluster file with changes and gives its path; None leaves a key out."""

    def write(**changes):
        content = {key: value for key, value in {**CLUSTER, **changes}.items() if value is not None}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(tmp_path / "mine.yaml")

    return write


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """A hub with nothing in it, in place of huggingface.co, and an empty cache."""
    from huggingface_hub import constants

    from tests.hub_server import serving
    from trainer import hub_settings
    from trainer.data import hub_datasets

    hub_settings._at_commit.cache_clear()
    hub_datasets._commit.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


@pytest.fixture
def offline(monkeypatch):
    """Takes the network away, as HF_HUB_OFFLINE=1 does."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
