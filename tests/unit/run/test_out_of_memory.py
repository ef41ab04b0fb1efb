import pickle

import pytest
import torch

from tests.messages import logged, says
from trainer.config.load import load
from trainer.config.schema import ProfileConfig
from trainer.errors import OutOfMemoryError
from trainer.run.out_of_memory import MAX_ENTRIES, advice, out_of_memory_explained, record_memory_history

WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation for Memory Management"


@pytest.fixture
def cuda(monkeypatch):
    """torch's functions that tell of CUDA's memory, replaced."""
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda: "| allocated | 79 GiB |")
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"segments": [1, 2]})


def explained(folder, *, rank=3, micro_batch=8, has_history=True, mode="bf16"):
    profile = ProfileConfig(memory_history=has_history)
    config = load("shakespeare").config.model_copy(update={"micro_batch": micro_batch, "profile": profile})
    return out_of_memory_explained(folder, rank, config, lambda: mode)


def run_out(folder, **changes):
    with pytest.raises(OutOfMemoryError) as caught:
        with explained(folder, **changes):
            raise torch.OutOfMemoryError(WORDS)
    return caught.value


def test_running_out_of_memory_leaves_a_summary_and_a_snapshot_and_says_what_to_do(cuda, tmp_path):
    error = run_out(tmp_path / "profile", has_history=True)
    summary, snapshot = tmp_path / "profile" / "memory-rank-3.txt", tmp_path / "profile" / "memory-rank-3.pickle"
    assert summary.read_text() == "| allocated | 79 GiB |"
    assert pickle.loads(snapshot.read_bytes()) == {"segments": [1, 2]}
    paragraph = str(error)
    says(paragraph, "rank 3", "bf16", "Tried to allocate 2.00 GiB", "micro_batch=4")
    assert str(summary) in paragraph
    assert str(snapshot) in paragraph
    assert "pytorch.org/memory_viz" in paragraph
    assert "\n" not in paragraph
    assert isinstance(error.__cause__, torch.OutOfMemoryError)
    assert str(error.__cause__) == WORDS


def test_without_a_history_there_is_the_summary_and_how_to_get_the_snapshot(cuda, tmp_path):
    error = run_out(tmp_path, has_history=False)
    assert [path.name for path in tmp_path.iterdir()] == ["memory-rank-3.txt"]
    assert "profile.memory_history=true" in str(error)


def test_what_cannot_be_written_does_not_hide_the_error(cuda, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.files.write_atomic", full)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: 1 / 0)
    error = run_out(tmp_path, has_history=True)
    says(error, "memory-rank-3.txt", "No space left on device", "memory-rank-3.pickle", "ZeroDivisionError", "2.00 GiB")
    assert isinstance(error.__cause__, torch.OutOfMemoryError)


def test_other_errors_and_none_go_their_way(tmp_path):
    with explained(tmp_path):
        pass
    with pytest.raises(RuntimeError, match="something else"), explained(tmp_path):
        raise RuntimeError("something else")
    assert list(tmp_path.iterdir()) == []


def test_the_advice_is_a_micro_batch_that_divides_what_there_was():
    assert "micro_batch=4 instead of 8" in advice(8, "bf16")
    assert "micro_batch=1 instead of 5" in advice(5, "bf16")
    assert "micro_batch is 1 already" in advice(1, "bf16")
    assert "gradient_checkpointing" in advice(1, "bf16")


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("no", ["fp32", "bf16"]),
        ("fp8", ["fp8", "precision.cache_weights=false"]),
        ("fp16", ["fp16"]),
    ],
)
def test_the_precision_is_told_and_what_it_takes_of_the_memory(cuda, tmp_path, mode, words):
    says(run_out(tmp_path, mode=mode), "rank 3", *words)


def test_the_history_is_bounded(monkeypatch, caplog):
    caplog.set_level("INFO")
    asked = {}
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **settings: asked.update(settings))
    record_memory_history()
    assert asked == {"stacks": "python", "max_entries": MAX_ENTRIES}
    logged(caplog, "100,000")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 314000000000 bytes. Error code 12"
            ),
            "314 GB",
        ),
        (MemoryError(), "MemoryError"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_the_machines_memory_running_out_has_the_same_advice(tmp_path, error, told):
    with pytest.raises(OutOfMemoryError) as caught:
        with explained(tmp_path, mode="no"):
            raise error
    words = str(caught.value)
    assert told in words
    assert advice(8, "no") in words
    assert "\n" not in words
    assert caught.value.__cause__ is error
    assert list(tmp_path.iterdir()) == [], "there is no GPU to tell of"


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(28, "No space left on device")])
def test_what_is_not_about_memory_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        with explained(tmp_path):
            raise error
    assert caught.value is error
