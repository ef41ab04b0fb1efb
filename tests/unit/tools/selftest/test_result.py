"""The report says what was done and what came of it."""

import json
from dataclasses import replace

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
    assert (
        "selftest of mine: 9 steps straight, and the same with 2 kills (SIGKILL), in 1m 15s\ncomputed in bf16 instead of fp8, because of this\n"
        in said
    )
    assert (
        "at most 5 steps of 0.4s lost, with a checkpoint every 3; the first start took 14s and 12s at most after a kill"
        in said
    )
    assert "max_steps=9\nin /a and /b, under the names straight and killed" in said
    assert "kept" not in said
    assert "trainer and writer" in said
    assert said.splitlines()[-1].startswith("exact: ")


def test_a_difference_is_said_with_the_others_and_where_the_runs_are_kept():
    said = replace(EXACT, differences=["step 5: loss", "optimizer.bin"]).text()
    assert "NOT exact: step 5: loss\n  also: optimizer.bin\nwhat the runs left is kept in /a and /b" in said
    assert "\nexact" not in said


def test_where_equal_bits_are_not_promised_it_says_so():
    assert "deterministic is false" in replace(EXACT, differences=["step 5"], deterministic=False).text()


def test_the_facts_are_json_and_have_the_verdict():
    facts = json.loads(json.dumps(EXACT.facts()))
    assert facts["exact"] is True
    assert [one["lost_steps"] for one in facts["survived"]] == [2, 5]
    assert facts["verdict"].startswith("exact: ")


def test_a_plan_that_does_not_fit_says_so_with_figures():
    assert plan_sentence(COSTS, CHOICE, 100.0).endswith("a checkpoint every 3 steps: about 1m 10s")
    assert plan_sentence(COSTS, CHOICE, 30.0).endswith(
        "and 30s are left: it goes on with that (--seconds gives it more)"
    )


def test_where_steps_are_what_takes_long_a_smaller_batch_is_named():
    assert "a smaller global_batch=... makes steps shorter" in plan_sentence(
        Costs(14.0, 20.0, 2.0), Choice(9, 3, 2, 540.0), 30.0
    )
