"""A branch of a run: copied whole, trained on with other settings, and the run itself is as it was."""

import pytest

from tests.commands import trainer
from tests.launching import checkpoint, steps, train, write_recipe
from trainer.checkpoint.format.manifest import read_manifest
from trainer.config.load import load
from trainer.errors import TrainerError
from trainer.fork import RECIPE, fork
from trainer.journal import branch_of, read_events


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(folder)
    train(recipe, "max_steps=10")
    return recipe


def test_a_branch_goes_on_with_other_settings_and_leaves_the_run_alone(trained):
    place = trained.parent
    before = everything(place / "runs" / "tiny"), everything(place / "checkpoints" / "tiny")
    said = fork(str(place / "runs" / "tiny"), "5", "branch", ["optimizer.lr=0.001", "seed=3", "max_steps=8"])
    assert str(place / "runs" / "branch" / "recipe.yaml") in said
    assert branch_of(place / "runs" / "branch") == ("tiny", 5)
    text = train(place / "runs" / "branch" / "recipe.yaml")
    assert "lacks" not in text
    assert [record["step"] for record in steps(trained, "branch")] == [6, 7, 8]
    (changed,) = read_events(place / "runs" / "branch", "change")
    assert {"optimizer.lr", "seed"} <= changed["changes"].keys()
    assert read_manifest(checkpoint(trained, 8, "branch")).branch_of == "tiny at step 5"
    assert (everything(place / "runs" / "tiny"), everything(place / "checkpoints" / "tiny")) == before
    train(place / "runs" / "branch" / "recipe.yaml", "max_steps=9")
    assert [record["step"] for record in steps(trained, "branch")] == [6, 7, 8, 9]
    shown = trainer("checkpoints", "show", str(place / "runs" / "branch"))
    compared = trainer("compare", str(place / "runs" / "tiny"), str(place / "runs" / "branch"))
    assert "tiny at step 5" in shown.out and "tiny at step 5" in compared.out


@pytest.mark.parametrize(
    ("wanted", "name", "overrides"),
    [("5", "tiny", []), ("7", "other", []), ("best", "other", ["lr=nonsense"]), ("latest", "other", ["nonsense=1"])],
)
def test_what_cannot_be_branched_off_is_refused_and_nothing_is_left(trained, wanted, name, overrides):
    place = trained.parent
    before = everything(place)
    with pytest.raises(TrainerError):
        fork(str(place / "runs" / "tiny"), wanted, name, overrides)
    assert everything(place) == before


def test_a_damaged_checkpoint_is_not_branched_off(trained):
    place = trained.parent
    weights = checkpoint(trained, 10) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(TrainerError):
            fork(str(place / "runs" / "tiny"), "10", "damaged", [])
        assert not (place / "runs" / "damaged").exists() and not (place / "checkpoints" / "damaged").exists()
    finally:
        weights.write_bytes(content)


def test_of_two_branches_made_at_once_under_one_name_one_is_made(trained, monkeypatch):
    place = trained.parent
    folder = place / "runs" / "twice"
    monkeypatch.setattr("trainer.fork.check_can_be_made", lambda *_: folder.mkdir(exist_ok=True))
    with pytest.raises(TrainerError, match="twice"):
        fork(str(place / "runs" / "tiny"), "5", "twice", [])
    assert folder.is_dir() and not (place / "checkpoints" / "twice").exists(), "what is there is the other one's"


@pytest.mark.parametrize(
    ("name", "typed", "allowed"),
    [
        ("whole", "optimizer={name: muon}", {"optimizer"}),
        ("named", "resume.allow_changes=[data]", {"data"}),
        ("single", "seed=3", {"seed"}),
    ],
)
def test_what_is_typed_is_allowed_however_it_is_typed(trained, name, typed, allowed):
    place = trained.parent
    fork(str(place / "runs" / "tiny"), "5", name, [typed])
    assert set(load(str(place / "runs" / name / RECIPE)).config.resume.allow_changes) == allowed
