"""When ranks are compared."""

from types import SimpleNamespace

import pytest
import torch

from trainer.run import compare_digests


@pytest.mark.parametrize(("step", "is_compared"), [(7, False), (8, True), (9, False), (10, True)])
def test_ranks_are_compared_at_their_interval_and_after_the_last_step(monkeypatch, step, is_compared):
    monkeypatch.setattr(compare_digests, "replicated_tensors", lambda *_: [])
    monkeypatch.setattr(compare_digests, "digest_of", lambda *_: torch.tensor(5))
    run = SimpleNamespace(
        progress=SimpleNamespace(step=step),
        config=SimpleNamespace(max_steps=10, safety=SimpleNamespace(digest_every_steps=8)),
        rollbacks=SimpleNamespace(agreed=0),
        accelerator=SimpleNamespace(gather=lambda mine: mine.repeat(2), device="cpu"),
        bare_model=None,
        optimizer=None,
    )
    assert compare_digests.judge_digests(run) is None
    assert run.rollbacks.agreed == (step if is_compared else 0)
