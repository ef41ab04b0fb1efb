"""The report says what was done and what came of it."""

import json
from dataclasses import replace

from tests.messages import says
from trainer.tools.selftest.choose import Choice, Costs
from trainer.tools.selftest.result import Result, Survived, plan_sentence

COSTS, CHOICE = Costs(14.0, 0.4, 2.0), Choice(9, 3, 2, 70.0)
EXACT = Result(
    name="mine",
    settings=["max_steps=9"],
    costs=COSTS,
    choice=CHOICE,
    straight_seconds=20.0,
    survived=[
        Survived(5, False, 12.0, 3, "resume exact: 2/2 replayed steps bit-identical"),
        Survived(8, True, None, 3, "resume exact: 5/5 replayed steps bit-identical"),
    ],
    differences=[],
    seconds=75.0,
    deterministic=True,
    computed_in="bf16 instead of fp8, because of this",
    folders=["/a", "/b"],
)


def test_an_exact_resume_is_said_with_its_kills():
    said = EXACT.text()
    says(said, "mine", "9 steps", "2 kills", "SIGKILL", "1m 15s", "bf16 instead of fp8, because of this")
    says(said, "5 steps of 0.4s", "every 3", "14s", "12s")
    says(said, "max_steps=9", "/a and /b", "straight", "killed")
    assert "kept" not in said
    assert "trainer and writer" in said
    assert said.splitlines()[-1].startswith("exact: ")


def test_a_difference_is_said_with_the_others_and_where_the_runs_are_kept():
    said = replace(EXACT, differences=["step 5: loss", "optimizer.bin"]).text()
    says(said, "NOT exact: step 5: loss", "optimizer.bin", "/a and /b")
    assert "\nexact" not in said


def test_where_equal_bits_are_not_promised_it_says_so():
    says(replace(EXACT, differences=["step 5"], deterministic=False).text(), "deterministic", "false")


def test_the_facts_are_json_and_have_the_verdict():
    facts = json.loads(json.dumps(EXACT.facts()))
    assert facts["exact"] is True
    assert [one["lost_steps"] for one in facts["survived"]] == [2, 5]
    assert facts["verdict"].startswith("exact: ")


def test_a_plan_that_does_not_fit_says_so_with_figures():
    says(plan_sentence(COSTS, CHOICE, 100.0), "every 3 steps", "1m 10s")
    says(plan_sentence(COSTS, CHOICE, 30.0), "30s", "--seconds")


def test_where_steps_are_what_takes_long_a_smaller_batch_is_named():
    says(plan_sentence(Costs(14.0, 20.0, 2.0), Choice(9, 3, 2, 540.0), 30.0), "global_batch")
