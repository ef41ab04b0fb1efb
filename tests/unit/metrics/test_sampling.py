import threading
import time

from tests.messages import says
from trainer.metrics.sampling import Sampling


def wait_for(condition, seconds=20.0):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.001)
    return found


def test_a_sample_is_taken_at_once_and_given_out_once():
    sampling = Sampling(lambda: {"host/load": 1.0}, seconds=60)
    assert sampling.take() == {}
    sampling.start()
    assert wait_for(sampling.take) == {"host/load": 1.0}
    assert sampling.take() == {}
    sampling.close()


def test_samples_go_on_until_it_is_closed():
    numbers = iter(range(10**9))
    sampling = Sampling(lambda: {"host/load": float(next(numbers))}, seconds=0.001)
    sampling.start()
    first, second = wait_for(sampling.take), wait_for(sampling.take)
    assert second["host/load"] > first["host/load"]
    sampling.close()
    assert sampling.wait(10)


def test_a_sample_that_hangs_holds_nobody_up():
    go_on = threading.Event()
    sampling = Sampling(lambda: {} if go_on.wait(30) else {}, seconds=0.001)
    sampling.start()
    assert sampling.take() == {}
    sampling.close()
    go_on.set()


def test_a_sample_that_fails_is_told_once_and_is_the_last(caplog):
    sampling = Sampling(lambda: {}["missing"], seconds=0.001)
    sampling.start()
    assert sampling.wait(10)
    [said] = caplog.messages
    says(said, "KeyError: 'missing'")
