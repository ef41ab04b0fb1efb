"""Millions of steps: whoever asks about them is answered from an index and the end, in little memory.

tests/benchmarks/month.py measures it with the fifteen million of a month.
"""

import tracemalloc
from contextlib import contextmanager

import pytest

from tests.messages import says
from tests.month import write_thinly
from trainer.journal import read_events
from trainer.metrics.curves import CURVE, LOST, cut_after, end_of_step, last_record, lost_records
from trainer.metrics.index import CurveIndex
from trainer.metrics.totals import totals_of
from trainer.metrics.trackers import begin_of_drawing
from trainer.report import report
from trainer.tools.compare.judge import judge
from trainer.tools.compare.runs import read_runs

MB = 1 << 20
STEPS = 2_000_000
"""Whole, the curve would have 500 MB."""


@pytest.fixture(scope="module")
def month(tmp_path_factory):
    folder = tmp_path_factory.mktemp("month")
    for name, seed in (("a", 1), ("b", 2)):
        write_thinly(folder / "runs" / name, seed, STEPS)
    return folder


@contextmanager
def at_most(megabytes):
    """The block takes no more memory, by what Python allocates."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < megabytes * MB, peak / MB


def test_a_report_of_millions_of_steps_takes_little_memory(month):
    folder = month / "runs" / "a"
    with at_most(8):
        words = report("a", folder, month / "checkpoints", None)
        totals = totals_of(folder / CURVE)
    says(words, "4d 15h")
    assert totals.step == STEPS
    assert round(totals.seconds) == STEPS // 5
    assert len(totals.recent_losses) == 20


def test_a_resume_of_millions_of_steps_reads_the_end(month):
    folder = month / "runs" / "b"
    with at_most(16):
        assert last_record(folder / CURVE)["step"] == STEPS
        assert len(read_events(folder, "start")) == 1
        CurveIndex(folder).draw()
        begin = (folder / LOST).stat().st_size if (folder / LOST).is_file() else 0
        assert cut_after(folder, STEPS - 100) == 100
        assert len(list(lost_records(folder, STEPS - 100, begin))) == 100
        (folder / ".drawn-tensorboard").write_text(str((folder / CURVE).stat().st_size))
        assert begin_of_drawing(folder, "tensorboard", STEPS - 100)[1] == STEPS - 99
        assert end_of_step(folder / CURVE, STEPS - 120) < (folder / CURVE).stat().st_size


def test_a_comparison_of_millions_of_steps_takes_little_memory(month):
    with at_most(80):
        (pair,) = judge(read_runs([str(month / "runs" / name) for name in ("a", "b")])).pairs
    assert pair.a.curve.num_steps >= STEPS - 600
    assert len(pair.judged) == 2
    assert not pair.has_same_batches
