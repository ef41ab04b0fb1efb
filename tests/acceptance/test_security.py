"""Loading a checkpoint executes nothing from it, even when its digests say that everything is in order."""

import json
import pickle
from dataclasses import replace

import pytest

from tests.launching import checkpoint, steps, train, write_recipe
from tests.messages import line_of
from trainer.checkpoint.format import manifest as manifests


class _Hostile:
    """Unpickling this runs a command of its maker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


NOT_READ = ("custom_checkpoint_0.pkl", "random_states_0.pkl")


@pytest.mark.parametrize("name", [*NOT_READ, "optimizer.bin", "model.safetensors", "random_states_0.json"])
def test_a_hostile_pickle_with_a_correct_digest_does_not_run(tmp_path, name):
    recipe = write_recipe(tmp_path, max_steps=10)
    train(recipe)
    folder, marker = checkpoint(recipe, 10), tmp_path / "was-here"
    (folder / name).write_bytes(pickle.dumps(_Hostile(marker)))
    manifest = manifests.read_manifest(folder)
    (folder / "manifest.json").write_text(manifests.to_json(replace(manifest, files=manifests.describe_files(folder))))
    with open(folder / name, "rb") as file:
        pickle.load(file).close()
    assert marker.exists(), "the pickle should be one that works"
    marker.unlink()

    said = train(recipe, "max_steps=12", exit_code=0 if name in NOT_READ else 2)
    assert not marker.exists()
    if name not in NOT_READ:
        line_of(said, name, "cannot be loaded")
        assert "Traceback" not in said
    else:
        assert steps(recipe)[-1]["step"] == 12


def test_the_state_comes_from_the_manifest_and_not_from_the_pickle(tmp_path):
    recipe = write_recipe(tmp_path, max_steps=10)
    train(recipe)
    stored = json.loads((checkpoint(recipe, 10) / "manifest.json").read_text())
    assert stored["state"]["progress"]["step"] == 10
    assert (checkpoint(recipe, 10) / "custom_checkpoint_0.pkl").is_file(), "Accelerate's own load_state reads this one"
