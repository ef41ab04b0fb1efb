"""torch's profiler over some steps of a run: a trace for Perfetto or TensorBoard, and a table of the heaviest operators beside it."""

import gzip
import logging
import shutil
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from trainer import files
from trainer.text import duration

log = logging.getLogger(__name__)

FOLDER = "profile"
"""In runs/NAME."""

NUM_OPERATORS = 30
"""Rows of the table of operators."""

_STAGING = ".trace-"
"""How the folders begin in which a trace lies until it is packed."""

_COMPRESSION = 3
"""Of gzip's levels, where a trace is a tenth of its size and training waits a few seconds for 100 MB of it."""


class Profiler:
    """Records the steps it was asked for, on rank 0. What goes wrong in it is logged, and does not end the run."""

    def __init__(self, steps: tuple[int, int] | None, run_folder: Path, *, rank: int, device: torch.device) -> None:
        """`steps` are the first and the last; None: none."""
        self._steps = steps if rank == 0 else None
        self._last = steps[1] if steps else None
        self._folder, self._rank, self._device = run_folder / FOLDER, rank, device
        self._trace: profile | None = None
        self._step_mark: record_function | None = None
        self._first = self._taken = 0

    def is_written_after(self, step: int) -> bool:
        """Whether what was recorded is written once this step is over; the same on every rank."""
        return step == self._last

    def reached(self, step: int) -> None:
        """The run has taken `step` steps: called before the first one of a launch, and at the end of each."""
        if self._steps is None:
            return
        first, last = self._steps
        if self._trace is not None:
            self._taken = step
            self._end_mark()
        if step >= last:
            if self._trace is None:
                asked = [first, last]
                log.info("profile: the run stands at step %d, after the steps %s: nothing is profiled", step, asked)
            self.close()
        elif step + 1 >= first:
            if self._trace is None:
                self._begin(step)
            self._begin_mark(step + 1)

    def close(self) -> None:
        """Ends a recording that is under way, and writes the steps that it has whole."""
        trace, self._trace, self._steps = self._trace, None, None
        if trace is None:
            return
        self._end_mark()
        try:
            trace.stop()
            if self._taken >= self._first:
                self._write(trace)
            else:
                log.info(
                    "profile: the run ended before step %d, the first to be recorded, was whole: nothing is written",
                    self._first,
                )
        except (OSError, RuntimeError) as error:
            log.warning("profile: it could not be written (%s); training goes on", error)

    def _begin(self, step: int) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])]
        trace = profile(activities=activities)
        try:
            trace.start()
        except RuntimeError as error:
            self._steps = None
            log.warning("profile: the profiler does not start (%s); training goes on without", error)
            return
        self._trace, self._first, self._taken = trace, step + 1, step

    def _begin_mark(self, step: int) -> None:
        if self._trace is not None:
            # The name by which TensorBoard's plug-in finds the steps.
            self._step_mark = record_function(f"ProfilerStep#{step}")
            self._step_mark.__enter__()

    def _end_mark(self) -> None:
        if self._step_mark is not None:
            self._step_mark.__exit__(None, None, None)
            self._step_mark = None

    def _write(self, trace: profile) -> None:
        started = time.perf_counter()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self._rank}-steps-{self._first}-{self._taken}"
        path = self._folder / f"{name}.pt.trace.json.gz"  # the ending by which TensorBoard's plug-in finds it
        for left in self._folder.glob(f"{_STAGING}*"):  # by a launch that was killed while it wrote
            files.remove_folder(left)
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self._folder) as folder:
            plain = Path(folder) / "trace.json"
            trace.export_chrome_trace(str(plain))
            with open(plain, "rb") as source, files.atomic_file(path) as file:
                with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_COMPRESSION, mtime=0) as target:
                    shutil.copyfileobj(source, target)
        operators = self._folder / f"{name}.operators.txt"
        files.write_atomic(operators, operator_table(trace, self._device) + "\n")
        what = f"steps {self._first} to {self._taken} in {path} (written in {duration(time.perf_counter() - started)})"
        how = "open it at https://ui.perfetto.dev, or in TensorBoard with torch-tb-profiler"
        log.info("profile: %s; %s; the heaviest operators are in %s", what, how, operators.name)


def operator_table(trace: profile, device: torch.device) -> str:
    """The operators that took most of the device's own time, as a table."""
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return trace.key_averages().table(sort_by=key, row_limit=NUM_OPERATORS)
