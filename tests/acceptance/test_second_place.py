"""The disk with a run's checkpoints dies, and the run goes on from its second place as if nothing had been."""

import shlex
import shutil
from pathlib import Path

from tests.commands import paragraph, trainer
from tests.launching import checkpoint, final_bytes, steps, train, write_recipe
from tests.messages import line_of


def test_a_run_whose_checkpoints_are_lost_says_how_they_come_back_and_goes_on_exactly(tmp_path):
    recipe = write_recipe(tmp_path, checkpoint={"mirror": str(tmp_path / "second")})
    train(recipe)
    straight = final_bytes(recipe)
    shutil.rmtree(tmp_path / "checkpoints")

    said = paragraph(train(recipe, exit_code=2))
    typed = said.split("bring one back: ./launch.sh ")[1].split(" (")[0]
    assert trainer(*shlex.split(typed.replace("latest", "20"))).code == 0
    said = train(recipe)
    assert f"resumed from {checkpoint(recipe, 20)}" in said
    line_of(said, "exact", "4/4")
    assert final_bytes(recipe) == straight


def test_a_run_of_which_only_the_second_place_is_left_goes_on_exactly_with_the_settings_that_a_copy_holds(tmp_path):
    recipe = write_recipe(tmp_path, checkpoint={"mirror": str(tmp_path / "second")})
    train(recipe)
    straight, losses = final_bytes(recipe), [record["loss"] for record in steps(recipe)]
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "runs")
    recipe.unlink()

    home = checkpoint(recipe, 20)
    assert trainer("checkpoints", "fetch", str(tmp_path / "second" / "tiny"), "20", "--to", str(home.parent)).code == 0
    kept = shutil.copy(home / "config.yaml", tmp_path / "kept.yaml")
    assert f"resumed from {home}" in train(Path(kept))
    assert final_bytes(recipe) == straight
    assert [record["loss"] for record in steps(recipe)] == losses[20:]
