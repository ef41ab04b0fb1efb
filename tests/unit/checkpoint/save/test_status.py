from trainer.checkpoint.commit import SaveResult
from trainer.checkpoint.save.status import LOGGED_SECONDS, LogThrottle


def lines_of(*moments):
    """What is logged of checkpoints of 2 kB at (monotonic seconds, whether it is logged in any case)."""
    throttle = LogThrottle()
    return [
        throttle.line(SaveResult(step, "budget", num_bytes=2_000), seconds=0.5, now=now, in_any_case=in_any_case)
        for step, (now, in_any_case) in enumerate(moments, start=1)
    ]


def test_the_first_is_logged_and_then_one_in_a_while_with_the_number_of_the_others():
    lines = lines_of(*((LOGGED_SECONDS / 6 * step, False) for step in range(1, 14)))
    logged = {step: line for step, line in enumerate(lines, start=1) if line}
    assert list(logged) == [1, 7, 13]
    assert "step 1:" in logged[1]
    assert "2 kB in 0.5s" in logged[1]
    assert "5 more" not in logged[1]
    assert "5 more" in logged[7]
    assert "5 more" in logged[13]


def test_what_must_be_logged_is_logged_at_once():
    first, second, third = lines_of((0.0, False), (1.0, False), (2.0, True))
    assert first
    assert second is None
    assert "1 more" in third
