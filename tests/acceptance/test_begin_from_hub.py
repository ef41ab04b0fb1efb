"""A model of the hub, from its download to its export: named once, at one commit for good, and compared with what it was."""

import re
import shutil
import sys
from functools import partial

import pytest
import yaml

from tests.commands import trainer
from tests.hub_server import Repository
from tests.launching import Started, checkpoint, steps, write_cluster, write_recipe
from tests.messages import line_of
from tests.sources import write_source
from trainer import hub_settings, launcher
from trainer.checkpoint.format.manifest import read_manifest
from trainer.cli.guide import FOLDER

NAME, COMMIT = "someone/small", "a" * 40
SHORT = {"max_steps": 3, "schedule": {"name": "constant", "warmup_steps": 0}, "checkpoint": {"every_steps": 1}}


def without_a_network(cache):
    """What HF_HUB_CACHE and HF_HUB_OFFLINE=1 do for a process that starts, for a rank that is forked."""
    from huggingface_hub import constants

    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = cache, True


@pytest.fixture
def source(tmp_path, hub_server):
    """A folder of transformers, which a hub has too."""
    folder = write_source(tmp_path / "source")
    hub_server.repositories[NAME] = Repository({path.name: path.read_bytes() for path in folder.iterdir()})
    return folder


def _launch(recipe, cluster, cache, *overrides):
    """What `trainer launch` does, with ranks that are forked: the parent finds the commits, and they are given them."""
    hub_settings._at_commit.cache_clear()
    checked = launcher.check_launch([str(cluster), str(recipe), *overrides])
    hub_settings.write_down(checked.hub_settings, checked.folder)
    given = checked.command[checked.command.index(str(recipe)) + 1 :]
    run = Started(recipe, given, 1, sabotage=partial(without_a_network, str(cache)))
    assert run.wait() == 0, run.text()


def test_a_model_of_the_hub_is_downloaded_once_continued_without_it_and_exported(tmp_path, source, hub_server):
    recipe = write_recipe(tmp_path, **SHORT, model={"init_from": f"hf:{NAME}", "config": {}})
    cluster, cache = write_cluster(tmp_path, 1), tmp_path / "cache"
    _launch(recipe, cluster, cache, "max_steps=2")
    kept = yaml.safe_load((tmp_path / "runs" / "tiny" / "config.yaml").read_text())
    assert kept["model"]["init_from"] == f"hf:{NAME}@{COMMIT}"
    assert read_manifest(checkpoint(recipe, 2)).initial["revision"] == COMMIT
    shown = trainer("checkpoints", "show", str(tmp_path / "checkpoints" / "tiny")).out
    assert line_of(shown, "model.init_from", f"hf:{NAME}@{COMMIT}")

    shutil.rmtree(cache)
    del hub_server.repositories[NAME]
    hub_server.requests.clear()
    _launch(recipe, cluster, cache)
    assert [record["step"] for record in steps(recipe)] == [1, 2, 3]
    assert hub_server.requests == []

    exported = tmp_path / "runs" / "tiny" / "exported"
    assert (exported / "chat_template.jinja").read_bytes() == (source / "chat_template.jinja").read_bytes()
    assert _compared(tmp_path, source, exported).keys() == {str(source), str(exported)}


def _compared(folder, *models):
    """Bits per byte of each model on a text, by the script of the guide."""
    (script,) = re.findall(
        r"^```python\n(# python compare\.py .*?)^```", (FOLDER / "hub.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (folder / "compare.py").write_text(script)
    (folder / "held-out.txt").write_text("To be, or not to be, that is the question. " * 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", str(folder / "held-out.txt"), *map(str, models)])
        printed = []
        exec(compile(script, "compare.py", "exec"), {"print": printed.append})
    found = dict(reversed(line.split(" bits per byte  ")) for line in printed)
    assert all(5 < float(bits) < 12 for bits in found.values()), "a random model knows no text"
    return found
