"""Whoever watches a run changes nothing of it: not a bit of its weights, nor which steps its ranks judge."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from tests.launching import TINY_GPT2, Started, final_bytes, outcome, steps, train, write_recipe
from trainer import loop
from trainer.run import consensus

NOTHING = {"metrics": {"detail_every_steps": 0, "histogram_every_steps": 0, "trackers": []}}
EVERYTHING = {"metrics": {"detail_every_steps": 1, "histogram_every_steps": 1}, "profile": {"steps": [1, 6]}}


@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_probes_histograms_and_the_profiler_at_every_step_change_no_bit(tmp_path, num_processes):
    ends, curves = [], []
    for name, settings in (("nothing", NOTHING), ("everything", EVERYTHING)):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, model={"config": TINY_GPT2}, **settings)  # with dropout, which draws
        train(recipe, "max_steps=6", num_processes=num_processes)
        ends.append(final_bytes(recipe, 6))
        curves.append([(record["loss"], record["grad_norm"], record["data_digest"]) for record in steps(recipe)])
    assert ends[0] == ends[1]
    assert curves[0] == curves[1]
    assert (tmp_path / "everything" / "runs" / "tiny" / "profile").is_dir(), "it was watched"


class Late:
    """A copy from a device whose numbers come with the next step's."""

    is_asynchronous = True

    def __init__(self, numbers):
        self._numbers = numbers.clone()

    def read(self):
        return self._numbers


def numbers_come_late(folder: Path) -> None:
    """As on a GPU; each rank writes down which steps it knew after each step, and so judged."""
    report = loop.report

    def report_and_note(run, *arguments):
        results = report(run, *arguments)
        with open(folder / f"rank-{os.environ['RANK']}.jsonl", "a") as file:
            file.write(json.dumps([run.progress.step, [result.step for result in results]]) + "\n")
        return results

    consensus.AsyncHostCopy = Late
    loop.report = report_and_note


def test_ranks_whose_numbers_are_late_judge_the_same_steps_around_a_sample(tmp_path):
    recipe = write_recipe(
        tmp_path, evaluation={"every_steps": 8, "samples_every_steps": 3, "sample_tokens": 4}, profile={"steps": [2, 4]}
    )
    run = Started(recipe, ("max_steps=12",), 2, partial(numbers_come_late, tmp_path))
    assert run.wait() == 0, run.text()
    first, second = ((tmp_path / f"rank-{rank}.jsonl").read_text() for rank in (0, 1))
    assert first == second
    assert outcome(recipe)["step"] == 12
    known = dict(map(json.loads, first.splitlines()))
    assert known[1] == [] and known[3] == [2, 3] and known[7] == [], "they come late, but before a sample"
