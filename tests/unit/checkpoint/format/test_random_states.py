import json
import random

import numpy as np
import pytest
import torch

from trainer.checkpoint.format import random_states
from trainer.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def streams_come_back():
    """The other tests find their random streams as they left them."""
    before = random_states.capture(CPU)
    yield
    random_states.restore(before, CPU)


def draw():
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.standard_normal(),
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
    ]


def test_every_stream_goes_on_where_it_stood_after_a_round_trip_through_json():
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second number back
    stored = json.loads(json.dumps(random_states.capture(CPU)))
    first = draw()
    assert draw() != first
    random_states.restore(stored, CPU)
    assert draw() == first


@pytest.mark.parametrize("stream", ["python", "numpy", "torch"])
def test_a_stream_that_does_not_come_back_ends_the_start(stream, monkeypatch):
    stored = random_states.capture(CPU)
    draw()
    setter = {"python": "random.setstate", "numpy": "numpy.random.set_state", "torch": "torch.set_rng_state"}[stream]
    monkeypatch.setattr(setter, lambda state: None)
    with pytest.raises(CheckpointError, match=stream):
        random_states.restore(stored, CPU)
    monkeypatch.undo()


def test_streams_begun_anew_are_a_function_of_seed_step_and_rank():
    drawn = {}
    for key in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (2**40, 2, 3)):
        random_states.seed_anew(*key)
        drawn[key] = str(draw())
    assert len(set(drawn.values())) == 5
    random_states.seed_anew(1, 2, 3)
    assert str(draw()) == drawn[1, 2, 3]
