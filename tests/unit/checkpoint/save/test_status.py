from trainer.checkpoint.save.status import TOLD_SECONDS, Told


def test_the_first_is_told_and_then_one_in_a_while_with_the_number_of_the_others():
    told = Told()
    lines = [
        told.line(step, "budget", num_bytes=2_000, seconds=0.5, now=50.0 * step, in_any_case=False)
        for step in range(1, 14)
    ]
    assert TOLD_SECONDS == 50.0 * 6
    assert {step: line for step, line in enumerate(lines, start=1) if line} == {
        1: "step 1: checkpoint (budget), 2 kB in 0.5s",
        7: "step 7: checkpoint (budget), 2 kB in 0.5s (5 more since the one told last)",
        13: "step 13: checkpoint (budget), 2 kB in 0.5s (5 more since the one told last)",
    }


def test_what_must_be_told_is_told_at_once():
    told = Told()
    facts = {"num_bytes": 2_000, "seconds": 0.5}
    assert told.line(1, "best", **facts, now=0.0, in_any_case=False) and not told.line(
        2, "best", **facts, now=1.0, in_any_case=False
    )
    assert (
        told.line(3, "final", **facts, now=2.0, in_any_case=True)
        == "step 3: checkpoint (final), 2 kB in 0.5s (1 more since the one told last)"
    )
