"""`trainer compare` on real runs: two seeds of one recipe are no different, and a worse one is named."""

import json
from unittest import mock

import pytest

from tests.commands import paragraph, trainer
from tests.launching import records, train, write_recipe
from tests.messages import says
from trainer import files

LONG = (
    "max_steps=40",
    "evaluation.every_steps=20",
    "checkpoint.every_steps=40",
    "checkpoint.asynchronous=false",
    "metrics.trackers=[]",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of a project with four finished runs: a base, another seed, rounding alone, and a learning rate ten times too low."""
    folder = tmp_path_factory.mktemp("project")
    recipe = write_recipe(folder)
    train(recipe, *LONG, "name=base")
    train(recipe, *LONG, "name=seed", "seed=7")
    train(recipe, *LONG, "name=again", "micro_batch=4")
    train(recipe, *LONG, "name=slow", "optimizer.lr=0.0003")
    with mock.patch.object(files, "project_folder", lambda: folder):
        yield folder


def said(*words: str) -> str:
    done = trainer("compare", *words)
    assert done.code == 0, done
    return done.out


def test_two_seeds_are_no_different_and_a_low_learning_rate_is_worse(project):
    told = json.loads(said("base", "seed", "again", "slow", "--json"))
    seed, again, slow = told["pairs"]
    assert (seed["verdict"], again["verdict"], slow["verdict"]) == ("no difference", "no difference", "worse")
    assert (seed["same_batches"], again["same_batches"], slow["same_batches"]) == (False, True, True)
    late = [
        sum(
            record["loss"]
            for record in records(project / "tiny.yaml", name)
            if "loss" in record and record["step"] > 32
        )
        / 8
        for name in ("base", "slow")
    ]
    assert slow["judged"]["loss"]["gap"] == pytest.approx(late[1] - late[0], rel=0.05)
    assert slow["judged"]["val_loss"]["verdict"] == "worse"
    assert slow["judged"]["bits_per_byte"]["verdict"] == "worse"
    assert told["settings"]["optimizer.lr"] == [0.003, 0.003, 0.003, 0.0003]
    assert told["runs"][0]["precision"] == "no"


def test_the_text_ends_in_the_verdict(project):
    lines = said("base", "slow").split("\n\n")
    says(lines[-1], "slow is worse than base", "same batches")
    assert "optimizer.lr" in lines[2]
    assert "seed" not in lines[2]


def test_a_run_is_the_same_to_the_last_bit_as_its_copy_elsewhere(project, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (copy / name).write_bytes((project / "runs" / "base" / name).read_bytes())
    says(said("base", str(copy)), "copy is base", "last bit")


def test_the_page_is_written_where_it_is_wanted(project, tmp_path):
    assert said("base", "slow", "--html", str(tmp_path)).endswith(f"\nplots: {tmp_path / 'compare-base-slow.html'}\n")
    done = trainer("compare", "base", "slow", "--json", "--html", str(tmp_path / "page.html"))
    assert json.loads(done.out)
    assert done.err == f"\nplots: {tmp_path / 'page.html'}\n"
    says((tmp_path / "page.html").read_text(), "slow is worse than base")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["base"], "compare needs two runs at least"),
        (["base", "bose"], "there is no run 'bose'; did you mean 'base'?"),
        (["base", "base"], "base and base are one run"),
        (["base", "slow", "--html", "absent/page.html"], "absent/page.html cannot be written"),
    ],
)
def test_a_mistake_is_answered_in_a_paragraph(project, words, answer):
    done = trainer("compare", *words)
    assert done.code == 2
    assert answer in paragraph(done.err)
