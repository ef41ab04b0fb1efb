import json

import pytest

from tests.small_checkpoints import commit
from trainer.errors import TrainerError
from trainer.metrics.outcome import write_outcome
from trainer.report import report


def test_a_run_is_reported_from_its_files_alone(store, tmp_path):
    folder = tmp_path / "runs" / "mine"
    facts = {"sample": "To be\nor not", "exported": "here/exported", "resume": "resume exact: 1/1"}
    write_outcome(folder, "finished", step=3, reason="all 3 steps were taken", **facts)
    records = [{"step": n, "loss": 4.0 - n, "tokens": n * 1000, "step_seconds": 20.0} for n in (1, 2, 3)]
    records.append({"step": 3, "val_loss": 2.25, "bits_per_byte": 1.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    commit(store, 3)
    text = report("mine", folder, store.folder, {"bigram": 5.14, "unigram": 6.27})
    for words in (
        "mine: finished at step 3 (all 3 steps were taken); 3k tokens in 1m 0s of training\nresume exact: 1/1",
        "training loss", "mean of the last 3 steps", "2.250", "1.500 bits a byte", "5.140", "6.270", "    To be\n    or not",
        str(store.folder), str(folder), "here/exported", "trainer generate mine", "tensorboard --logdir", "trainer checkpoints ls mine",
    ):  # fmt: skip
        assert words in text


def test_a_run_that_was_killed_at_its_start_is_reported_too(store, tmp_path):
    write_outcome(tmp_path / "mine", "running", step=0, reason="started")
    text = report("mine", tmp_path / "mine", store.folder, None)
    assert "mine: running, or killed at step 0 (started)\n" in text and "nats" not in text and "It writes" not in text


def test_a_run_that_never_was_is_an_error(store, tmp_path):
    with pytest.raises(TrainerError, match="there is no run mine in"):
        report("mine", tmp_path / "mine", store.folder, None)
