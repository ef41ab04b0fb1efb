"""Puts each step's numbers everywhere they belong: metrics.jsonl, trackers, log and progress bar.

The host must not wait for the device in every step. So a step hands its numbers over as one device tensor, the copy to the host
runs behind it, and they are read when the next step hands over its own (on a CPU, where there is nothing to wait for, at
once). `flush` reads what is still on its way, before an evaluation, a save and the end.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainer.journal import Journal
from trainer.metrics.console import ProgressBar
from trainer.metrics.curves import CURVE, LOST, Curve, cut_after, read_records
from trainer.metrics.meters import Speed, SpeedMeter
from trainer.metrics.replay import ReplayProof
from trainer.metrics.trackers import PatientTracker, open_trackers
from trainer.text import count, duration

log = logging.getLogger(__name__)

SAVED = ".saved"
"""Stands in runs/NAME once the run has committed a checkpoint."""


@dataclass(frozen=True)
class Known:
    """The newest step whose numbers have reached the host; the same on every rank."""

    step: int
    loss: float
    """Mean over the global batch, nats a token."""
    grad_norm: float
    """Total norm before clipping."""
    stop_votes: float
    """How many ranks were asked to stop by then."""
    save_wish: float
    """What rank 0 wished for then: see checkpoint/checkpointer.py."""


@dataclass(frozen=True)
class _Pending:
    """A step whose numbers are on their way from the device."""

    record: dict[str, Any]
    speed: Speed
    numbers: torch.Tensor
    ready: torch.cuda.Event | None


class Reporter:
    """Every method is called on every rank; only the main process writes."""

    def __init__(
        self, accelerator: Accelerator, folder: Path, *, name: str, max_steps: int, console_every_steps: int, trackers: list[str],
        meter: SpeedMeter, replay_key: str,
    ) -> None:  # fmt: skip
        self._accelerator, self._folder, self._name, self._max_steps = accelerator, folder, name, max_steps
        self._console_every_steps, self._meter, self._replay_key = console_every_steps, meter, replay_key
        self._tracker_names = trackers
        self._trackers: list[PatientTracker] = []
        self._main = accelerator.is_main_process
        self._pending: _Pending | None = None
        self._proof: ReplayProof | None = None
        self._curve: Curve | None = None
        self._bar: ProgressBar | None = None
        self._loss_since_line: list[float] = []
        self._failed_writes = 0
        self._curve_left = False
        self._journal = Journal(folder)
        self.known: Known | None = None
        self.verdict: str | None = None
        """What the replay after the last resume proved, as one sentence; None while it is open."""

    def leave_curve(self) -> None:
        """Moves everything written so far to the lost records: what follows continues another run or branch."""
        self._curve_left = True
        if moved := cut_after(self._folder, -1):
            log.info("%d records of the branch that was left moved to %s", moved, LOST)

    def open(self, settings: dict[str, Any], resumed_step: int | None) -> None:
        """Opens every output; after a resume at `resumed_step` the curve continues there."""
        if self._main:
            self._folder.mkdir(parents=True, exist_ok=True)
            moved = cut_after(self._folder, -1 if resumed_step is None else resumed_step)
            if moved:
                log.info("%d records after step %s moved to %s", moved, resumed_step or 0, LOST)
            self._proof = ReplayProof(read_records(self._folder / LOST), resumed_step or 0, self._replay_key)
            if self._proof.announcement:
                log.info(self._proof.announcement)
            self._curve = Curve(self._folder)
            self._bar = ProgressBar(self._max_steps)
            if resumed_step is None:
                (self._folder / SAVED).unlink(missing_ok=True)
            else:
                self._try(SAVED, (self._folder / SAVED).touch)
        self._trackers = open_trackers(
            self._accelerator, self._tracker_names, self._name, self._folder, settings, None if self._curve_left else resumed_step
        )  # fmt: skip
        self._meter.resume(time.perf_counter())

    def step(
        self,
        *,
        step: int,
        tokens: int,
        step_tokens: int,
        lr: float,
        epoch: float,
        data_digest: str,
        numbers: torch.Tensor,
    ) -> list[Known]:
        """Hands over one step; `numbers` [4] on the device: loss, gradient norm, votes to stop, wish for a save.

        Returns the steps whose numbers have reached the host by now: this one on a CPU, the one before on a GPU.
        """
        speed = self._meter.step(step_tokens, time.perf_counter())
        record = {"step": step, "tokens": tokens, "lr": lr, "epoch": epoch, "data_digest": data_digest}
        arrived = self.flush()
        self._pending = _Pending(record, speed, *_send_to_host(numbers))
        return arrived if self._pending.ready else arrived + self.flush()

    def flush(self) -> list[Known]:
        """Waits for the numbers still on their way, and returns them."""
        if self._pending is None:
            return []
        arrived, self._pending = self._pending, None
        return [self._arrive(arrived)]

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
        values = {"loss/validation": val_loss, **{f"evaluation/{name}": value for name, value in facts.items()}}
        self._put({**record, "seconds": round(seconds, 3)}, values)
        extra = "".join(f", {name} {value:.4f}" for name, value in facts.items())
        log.info("step %d: validation loss %.4f%s (%s)", step, val_loss, extra, duration(seconds))

    def saved(self, step: int, values: dict[str, float]) -> None:
        """Draws what a checkpoint cost, and what the promise comes to."""
        self._draw(values, step)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The time in this block is not the step's: an evaluation or a save. Every number must have arrived before it."""
        assert self._pending is None, "flush() first, and judge what arrives"
        yield
        self._meter.resume(time.perf_counter())

    def close(self) -> None:
        """Flushes and closes every output."""
        self.flush()
        if self._bar is not None:
            self._bar.close()
        if self._curve is not None:
            self._try(CURVE, self._curve.close)
        for tracker in self._trackers:
            self._try(tracker.name, tracker.close, Exception)

    def _arrive(self, pending: _Pending) -> Known:
        if pending.ready is not None:
            pending.ready.synchronize()
        loss, grad_norm, stop_votes, save_wish = pending.numbers.tolist()
        self.known = Known(pending.record["step"], loss, grad_norm, stop_votes, save_wish)
        if self._main:
            self._write(pending.record, pending.speed, loss, grad_norm)
        return self.known

    def _write(self, record: dict[str, Any], speed: Speed, loss: float, grad_norm: float) -> None:
        step = record["step"]
        full = {
            **record,
            "loss": _finite(loss),
            "grad_norm": _finite(grad_norm),
            "tokens_per_second": round(speed.tokens_per_second, 1),
            "step_seconds": round(speed.step_seconds, 6),
            **({} if speed.mfu is None else {"mfu": round(speed.mfu, 5)}),
            "replay_key": self._replay_key,
        }
        values = {
            "loss/train": loss,
            "optim/lr": record["lr"],
            "optim/grad_norm": grad_norm,
            "speed/tokens_per_second": speed.tokens_per_second,
            "speed/step_seconds": speed.step_seconds,
            "data/epoch": record["epoch"],
            **({} if speed.mfu is None else {"speed/mfu": speed.mfu}),
        }
        self._put(full, values)
        self._prove(full)
        self._show(step, loss, grad_norm, record["lr"], speed)

    def _put(self, record: dict[str, Any], values: dict[str, float]) -> None:
        """Writes to the curve and the trackers. A full disk does not end the run here: its checkpoints decide that."""
        self._try(CURVE, lambda: self._curve.append(record))
        self._draw(values, record["step"])

    def _draw(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            self._try(tracker.name, lambda tracker=tracker: tracker.log(values, step), Exception)

    def _try(self, what: str, write: Callable[[], None], failure: type[Exception] = OSError) -> None:
        """Counts a failure and goes on. What a tracker may raise is its own affair; what we write fails by the disk only."""
        try:
            write()
        except failure as error:
            self._failed_writes += 1
            if self._failed_writes & (self._failed_writes - 1) == 0:  # told at the 1st, 2nd, 4th, 8th ...
                log.warning("%s: not written, %s (%d times by now); training goes on", what, error, self._failed_writes)

    def _prove(self, record: dict[str, Any]) -> None:
        verdict = self._proof.compare(record) if self._proof else None
        if verdict:
            self.verdict = verdict
            is_exact = verdict.startswith("resume exact")
            self._journal.write("verdict", exact=is_exact, text=verdict, step=record["step"])
            self._draw({"resume/exact": float(is_exact)}, record["step"])
            (log.info if is_exact else log.error)(verdict)

    def _show(self, step: int, loss: float, grad_norm: float, lr: float, speed: Speed) -> None:
        left = self._meter.seconds_left(self._max_steps - step)
        mfu = "" if speed.mfu is None else f"  mfu {speed.mfu:.1%}"
        pace = f"{count(speed.tokens_per_second)} tokens/s{mfu}  {duration(left)} left"
        self._bar.update(step, loss=loss, tokens_per_second=speed.tokens_per_second, mfu=speed.mfu, seconds_left=left)
        self._loss_since_line.append(loss)
        if step % self._console_every_steps == 0 or step == self._max_steps:
            mean = sum(self._loss_since_line) / len(self._loss_since_line)
            self._loss_since_line.clear()
            log.info(
                "step %d/%d  loss %.4f  grad norm %.3f  lr %.2e  %s", step, self._max_steps, mean, grad_norm, lr, pace
            )


def _send_to_host(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Starts the copy of a few numbers to the host; the event says when it is there (None: it is there)."""
    if numbers.device.type != "cuda":
        return numbers, None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return host, ready


def _finite(value: float) -> float | None:
    """A number JSON can hold; None for what is not finite."""
    return value if math.isfinite(value) else None
