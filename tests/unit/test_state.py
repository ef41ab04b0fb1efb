import json
import logging

from tests.messages import logged
from trainer.state import Progress, TrainState


class Part:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_step_position_and_tokens_move_together():
    state = TrainState(Progress())
    state.advance(8, 1024)
    state.advance(8, 1024)
    assert state.progress == Progress(step=2, sequences=16, tokens=2048)


def test_the_state_survives_a_round_trip_through_json():
    state = TrainState(Progress(3, 12, 96), guard=Part(7), evaluation=Part(None))
    stored = json.loads(json.dumps(state.state_dict()))
    again = TrainState(Progress(), guard=Part(0), evaluation=Part(0))
    again.load_state_dict(stored)
    assert again.state_dict() == state.state_dict()
    assert stored["version"] == 1


def test_a_part_that_the_checkpoint_lacks_starts_fresh_with_a_warning(caplog):
    state = TrainState(Progress(), guard=Part(5))
    with caplog.at_level(logging.WARNING):
        state.load_state_dict({"version": 1, "progress": {"step": 1, "sequences": 2, "tokens": 3}})
    assert state.progress.step == 1
    assert state.state_dict()["guard"] == {"value": 5}
    logged(caplog, "'guard'")


def test_a_part_that_this_run_lacks_is_left_out_with_a_warning(caplog):
    state = TrainState(Progress())
    with caplog.at_level(logging.WARNING):
        state.load_state_dict(
            {"version": 1, "progress": {"step": 1, "sequences": 2, "tokens": 3}, "clock": {"value": 1}}
        )
    logged(caplog, "'clock'")
    assert "clock" not in state.state_dict()
