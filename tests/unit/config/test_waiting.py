"""What a launch says of waiting threads, and whose word wins."""

import pytest

from trainer.config.waiting import WAITING, waiting


def test_a_launch_bounds_the_spinning_of_waiting_threads():
    assert waiting({"HOME": "/home/you"}) == WAITING
    assert int(WAITING["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_a_person_has_chosen_is_left_alone(name):
    assert waiting({name: "anything"}) == {}
