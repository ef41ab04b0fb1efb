"""Puts each step's numbers everywhere they belong: metrics.jsonl, which the trackers draw, log and progress bar.

What the host knows of a step comes when the step is taken, and its result when the ranks have agreed on it, on a GPU one step later
(run/consensus.py). Then the step is written.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainer import beats
from trainer.config.schema import MetricsConfig
from trainer.ending.outcome_file import OUTCOME, RunningOutcome
from trainer.journal import Journal
from trainer.metrics.board import SETTINGS, remove_end, write_end, write_settings
from trainer.metrics.console import ProgressBar
from trainer.metrics.curves import (
    CURVE,
    LOST,
    Curve,
    cut_after,
    end_of_step,
    last_records,
    lost_records,
    lost_since,
    newest_value,
    records_from,
)
from trainer.metrics.details import Details, detail_interval
from trainer.metrics.drawing import Drawing
from trainer.metrics.expert_load import AUX_LOSS
from trainer.metrics.failures import CountedFailures
from trainer.metrics.index import CurveIndex
from trainer.metrics.meters import Speed, SpeedMeter
from trainer.metrics.probes import Reading
from trainer.metrics.sampling import Sampling
from trainer.metrics.slow_alarm import SlowAlarm
from trainer.metrics.stopwatch import RARE, StepTimes
from trainer.metrics.tags import layout
from trainer.metrics.trackers import open_trackers
from trainer.replay import FACTS, ReplayProof, read_facts, remember_facts
from trainer.step_result import StepResult
from trainer.text import count, duration, numbered

log = logging.getLogger(__name__)

SMOOTHING_STEPS = 20
"""Over about how many steps the smoothed loss is a moving average."""

WORST = "checkpoint/worst_lost_work_seconds"

SAVED = ".saved"
"""Stands in runs/NAME once the run has committed a checkpoint."""


@dataclass(frozen=True)
class StepFacts:
    """What the host knows of a step that was taken, before its result has arrived."""

    step: int
    tokens: int
    """Trained on up to this step."""
    step_tokens: int
    lr: float
    epoch: float
    data_digest: str
    times: StepTimes
    measured: Mapping[str, float] = field(default_factory=dict)
    """Numbers by tag."""
    reading: Reading | None = None
    load: Reading | None = None
    """Of the experts of a model, on a step on which it was counted."""


class Reporter:
    """Every method is called on every rank; only the main process writes."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        settings: MetricsConfig,
        *,
        name: str,
        max_steps: int,
        features: Collection[str],
        meter: SpeedMeter,
        replay_key: str,
        replay_facts: Mapping[str, Any],
        sample: Callable[[], Mapping[str, float]],
        slow_alarm: SlowAlarm,
    ) -> None:
        """`features` are those of tags.py that this run has; `replay_facts` are what the key stands for; `sample` looks at the machine: numbers by tag."""
        self._accelerator, self._folder, self._settings = accelerator, folder, settings
        self._name, self._max_steps, self._features, self._meter = name, max_steps, features, meter
        self._replay_key, self._replay_facts = replay_key, replay_facts
        self._sampling, self._slow_alarm = Sampling(sample), slow_alarm
        self._details = Details(detail_interval(settings.detail_every_steps, max_steps))
        self._failures = CountedFailures()
        self._drawing: Drawing | None = None
        self._beside: dict[str, float] = {}
        self._smoothed: float | None = None
        self._saved_at: float | None = None
        self._main = accelerator.is_main_process
        self._taken: deque[tuple[StepFacts, dict[str, Any]]] = deque()
        """Steps whose result has not arrived yet, with the record that is begun."""
        self._proof: ReplayProof | None = None
        self._curve: Curve | None = None
        self._bar: ProgressBar | None = None
        self._loss_since_line: list[float] = []
        self._curve_left = self._is_closed = False
        self._left_at: int | None = None
        """The byte of the lost records at which those of a branch begin that was left."""
        self._journal, self._outcome = Journal(folder), RunningOutcome(folder)
        self.step_seconds: float | None = None
        """What the newest step that was written took, on the main process; None elsewhere."""
        self.verdict: str | None = None
        """What the replay after the last resume proved, as one sentence; None while it is open."""

    @property
    def replay_facts(self) -> Mapping[str, Any]:
        """Everything that must be equal for a replay to be bit-identical, by name."""
        return self._replay_facts

    def replay_by(self, key: str, facts: Mapping[str, Any]) -> None:
        """From here on these facts, and the key that stands for them, decide which steps are compared; called before `open`."""
        self._replay_key, self._replay_facts = key, facts

    def leave_curve(self) -> None:
        """Moves everything written so far to the lost records: what follows continues another run or branch."""
        self._curve_left, self._left_at = True, _num_bytes(self._folder / LOST)
        if moved := cut_after(self._folder, -1):
            log.info("%s of the branch that was left moved to %s", numbered(moved, "record"), LOST)

    def open(
        self,
        settings: dict[str, Any],
        resumed_step: int | None,
        texts: Mapping[str, str],
        once: Mapping[str, str] | None = None,
        assumed_facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens every output; after a resume at `resumed_step` the curve continues there.

        texts          Markdown by tag that TensorBoard shows of each launch; `once`: of the run
        assumed_facts  the facts that decide about bits, as far as the checkpoint has them, for lost steps whose launch did not write them down
        """
        if not self._main:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lost_before = _num_bytes(self._folder / LOST)
        worst_seconds = newest_value(last_records(self._folder / CURVE), WORST) or 0.0
        moved = cut_after(self._folder, -1 if resumed_step is None else resumed_step)
        if moved:
            log.info("%s after step %s moved to %s", numbered(moved, "record"), resumed_step or 0, LOST)
        lost = lost_records(self._folder, resumed_step or 0, lost_before)
        self._proof = ReplayProof(
            lost, resumed_step or 0, self._replay_key, self._replay_facts, read_facts(self._folder), assumed_facts or {}
        )
        self._failures.guard(FACTS, lambda: remember_facts(self._folder, self._replay_key, self._replay_facts))
        replay = self._proof.announcement
        if replay:
            log.info(replay)
        lost_work = lost_since(self._folder, lost_before if self._left_at is None else self._left_at)
        self._journal.write("train", step=resumed_step or 0, **lost_work, worst_seconds=worst_seconds, replay=replay)
        self._smoothed = _smoothed_at(self._folder, resumed_step)
        self._curve = Curve(self._folder)
        if resumed_step is None:
            (self._folder / SAVED).unlink(missing_ok=True)
        else:
            self._failures.guard(SAVED, (self._folder / SAVED).touch)
        self._open_trackers(settings, None if self._curve_left else resumed_step, texts, once or {})
        self._sampling.start()
        self._bar = ProgressBar(self._max_steps)

    def _open_trackers(
        self, settings: dict[str, Any], resumed_step: int | None, texts: Mapping[str, str], once: Mapping[str, str]
    ) -> None:
        remove_end(self._folder)
        names, options = self._settings.trackers, self._settings.tracker_options
        trackers = open_trackers(self._accelerator, names, self._name, self._folder, settings, resumed_step, options)
        self._drawing = Drawing([*trackers, CurveIndex(self._folder)], self._failures)
        if "tensorboard" in names:
            self._failures.guard(SETTINGS, lambda: write_settings(self._folder, settings))
        if any(tracker.begins for tracker in trackers):
            self._drawing.add(0, lambda writer: writer.add_custom_scalars(layout(self._features)))
            for tag, text in once.items():
                self._drawing.text(tag, text, 0)
        for tag, text in texts.items():
            # At the step that this launch takes first: a resume from an earlier step forgets it, and one from this step writes it anew.
            self._drawing.text(tag, text, 0 if resumed_step is None else resumed_step + 1)

    def step_taken(self, facts: StepFacts) -> None:
        """Takes what the host knows of a step; it is written once its result arrives."""
        record = {
            "step": facts.step,
            "tokens": facts.tokens,
            "lr": _rounded(facts.lr, 9),
            "epoch": _rounded(facts.epoch),
            "data_digest": facts.data_digest,
        }
        changed = self._details.changed(facts.measured, facts.step)
        self._taken.append((facts, record | {tag: _rounded(value) for tag, value in changed.items()}))

    def write(self, results: Iterable[StepResult]) -> None:
        """Writes the steps whose results have arrived, in the order in which they were taken."""
        for result in results:
            facts, record = self._taken.popleft()
            assert facts.step == result.step, "results arrive in the order of the steps"
            if self._main:
                self._write(facts, record, result)

    def sync(self) -> None:
        """Makes the curve durable up to the last step, before a checkpoint of that step is."""
        if self._curve is not None:
            self._curve.sync()

    def evaluation(self, step: int, tokens: int, val_loss: float, facts: dict[str, float], seconds: float) -> None:
        """Writes down a validation loss, with further `facts` by name."""
        if not self._main:
            return
        numbers = {"val_loss": val_loss, **facts}
        record = {"step": step, "tokens": tokens, **{name: _finite(value) for name, value in numbers.items()}}
        self._put({**record, "seconds": round(seconds, 3)})
        extra = "".join(f", {name} {value:.4f}" for name, value in facts.items())
        log.info("step %d: validation loss %.4f%s (%s)", step, val_loss, extra, duration(seconds))

    def saved(self, step: int, values: dict[str, float]) -> None:
        """Takes what a checkpoint cost, and what the promise comes to: numbers of the next step that is written."""
        self._saved_at = time.perf_counter() - values["checkpoint/write_seconds"]
        self._beside.update(values)
        if self._bar is not None:
            self._bar.saved()

    def may_fail(self, what: str, work: Callable[[], object]) -> None:
        """Does what the run can do without, whatever it raises: counted and logged, as a tracker's failures are."""
        self._failures.guard(what, work, Exception)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Draws a text in TensorBoard."""
        if self._drawing is not None:
            self._drawing.text(tag, markdown, step)

    @contextmanager
    def pause(self, doing: str) -> Iterator[None]:
        """The time in this block is not the step's: `evaluating`, `saving` ... Every result must have arrived before it."""
        assert not self._taken, "settle the results first, and judge them"
        if self._bar is not None:
            self._bar.busy(doing)
        with beats.phase(doing):
            yield

    def close(self, *, finished: bool = False) -> None:
        """Closes every output. `finished`: the run has taken all its steps."""
        assert not self._taken, "settle the results first, and write them"
        self._close(finished)

    def abandon(self) -> None:
        """Closes what is still open, when the run fails: what is known is drawn, the terminal is as it was, and no device is waited for."""
        self._close(finished=False)

    def _close(self, finished: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._sampling.close()
        self._slow_alarm.close()
        if self._bar is not None:
            self._bar.close()
        if self._curve is not None:
            self._failures.guard(CURVE, self._curve.close)
        self._outcome.close()
        if self._drawing is not None:
            if finished:
                self._drawing.add(self._max_steps, lambda _: write_end(self._folder, self._max_steps))
            self._drawing.close()

    def _write(self, facts: StepFacts, begun: dict[str, Any], result: StepResult) -> None:
        assert self._drawing is not None, "open() first"
        step, loss, grad_norm = result.step, result.loss, result.grad_norm
        speed = self._meter.step(facts.step_tokens, facts.times.step_seconds())
        self.step_seconds = speed.step_seconds
        if math.isfinite(loss):
            before = loss if self._smoothed is None else self._smoothed
            self._smoothed = before + (loss - before) / SMOOTHING_STEPS
        full = {
            **begun,
            "loss": _finite(loss),
            "loss_smoothed": None if self._smoothed is None else _rounded(self._smoothed),
            "grad_norm": _finite(grad_norm),
            **({} if result.aux_loss is None else {AUX_LOSS: _finite(result.aux_loss)}),
            "tokens_per_second": round(speed.tokens_per_second, 1),
            "step_seconds": round(speed.step_seconds, 6),
            **({} if speed.mfu is None else {"mfu": round(speed.mfu, 5)}),
            "replay_key": self._replay_key,
            **self._measured(facts),
        }
        self._slow_alarm.step(step, speed.step_seconds)
        self._prove(full)
        self._put(full)
        self._failures.guard(OUTCOME, partial(self._outcome.step_taken, step))
        if facts.reading is not None and facts.reading.has_histograms:
            self._drawing.histograms(step, facts.reading.histograms)
        self._show(result, facts.lr, speed)

    def _measured(self, facts: StepFacts) -> dict[str, float | None]:
        """What was measured beside the step's core numbers, by tag: of what every step has the mean since the last look at the details."""
        beside, self._beside = self._beside, {}
        times = {f"time/{part}_seconds": seconds for part, seconds in facts.times.seconds().items()}
        # The times of a step that was another than most are its own.
        beside.update(times) if facts.times.seconds().keys() & RARE else self._details.add(times)
        if self._saved_at is not None and self._details.is_due(facts.step):
            beside["checkpoint/age_seconds"] = time.perf_counter() - self._saved_at
        beside = {**self._details.take(facts.step), **beside}
        for reading in (facts.reading, facts.load):
            if reading is not None:
                beside.update(reading.numbers())
        if machine := self._sampling.take():
            beside.update(machine, **self._slow_alarm.values(machine))
        return {tag: _rounded(value) for tag, value in beside.items()}

    def _put(self, record: dict[str, Any]) -> None:
        """Writes to the curve, where the trackers find it. A full disk does not end the run here: its checkpoints decide that."""
        assert self._curve is not None, "open() first"
        self._failures.guard(CURVE, partial(self._curve.append, record))

    def _prove(self, record: dict[str, Any]) -> None:
        """Compares a replayed step with what was lost; the verdict, once it is there, goes into its record."""
        verdict = self._proof.compare(record) if self._proof else None
        if verdict:
            self.verdict = verdict
            is_exact = verdict.startswith("resume exact")
            self._journal.write("verdict", exact=is_exact, text=verdict, step=record["step"])
            record["resume/exact"] = float(is_exact)
            (log.info if is_exact else log.error)(verdict)

    def _show(self, result: StepResult, lr: float, speed: Speed) -> None:
        assert self._bar is not None, "open() first"
        step, loss, aux_loss = result.step, result.loss, result.aux_loss
        steps_left = self._max_steps - step
        left = self._meter.seconds_left(steps_left) if steps_left else None
        mfu = "" if speed.mfu is None else f"  mfu {speed.mfu:.1%}"
        pace = f"{count(speed.tokens_per_second)} tokens/s{mfu}" + ("" if left is None else f"  {duration(left)} left")
        self._bar.update(step, loss=loss, tokens_per_second=speed.tokens_per_second, mfu=speed.mfu, seconds_left=left)
        self._loss_since_line.append(loss)
        if step % self._settings.console_every_steps == 0 or step == self._max_steps:
            mean = sum(self._loss_since_line) / len(self._loss_since_line)
            self._loss_since_line.clear()
            aux = "" if aux_loss is None else f"  aux loss {aux_loss:.4f}"
            numbers = f"loss {mean:.4f}{aux}  grad norm {result.grad_norm:.3f}  lr {lr:.2e}"
            log.info("step %d/%d  %s  %s", step, self._max_steps, numbers, pace)


def _smoothed_at(folder: Path, step: int | None) -> float | None:
    """The smoothed loss that stands in the curve at a step; None at the start."""
    if step is None:
        return None
    curve = folder / CURVE
    found = (record.get("loss_smoothed") for _, record in records_from(curve, end_of_step(curve, step - 1)))
    return next((value for value in found if value is not None), None)


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _rounded(value: float, digits: int = 6) -> float | None:
    """A few digits are enough for what no replay compares; None for what is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _finite(value: float) -> float | None:
    """A number JSON can hold; None for what is not finite."""
    return value if math.isfinite(value) else None
