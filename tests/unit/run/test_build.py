"""What the parts of a run are told of its settings."""

from types import SimpleNamespace

import pytest

from trainer.run.build import _is_profiled


@pytest.mark.parametrize(("steps", "profiled"), [(None, []), ((2, 4), [2, 3, 4])])
def test_steps_under_the_profiler_are_another_kind_to_the_watch_for_slow_steps(steps, profiled):
    config = SimpleNamespace(profile=SimpleNamespace(steps=steps))
    assert [step for step in range(1, 7) if _is_profiled(config, step)] == profiled
