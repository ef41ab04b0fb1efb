"""A run whose journal tells of a month with everything in it, written without training for one."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.written_runs import losses, write_run

BEGAN = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)
STEP_SECONDS = 36.0
GPUS = "4 processes on NVIDIA H100 80GB HBM3 each"


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def event(seconds: float, kind: str, /, **facts: Any) -> dict[str, Any]:
    """An event of the journal, so many seconds after the run began."""
    return {"time": at(seconds), "event": kind, **facts}


def saves(first: int, last: int, begin: float) -> list[dict[str, Any]]:
    """A save every five steps of a launch whose first step, `first`, began so many seconds after the run."""
    return [
        event(
            begin + (step - first + 1) * STEP_SECONDS,
            "save",
            step=step,
            seconds=9.5,
            bytes=1_500_000_000,
            reason="budget",
        )
        for step in range(first, last + 1)
        if step % 5 == 0
    ]


def start(
    seconds: float, train: float | None = None, *, step: int = 0, lost: int = 0, **facts: Any
) -> list[dict[str, Any]]:
    """The events of a launch up to its first step; without `train` it does not come so far."""
    events = [event(seconds, "start", processes=4, machine=GPUS, precision="bf16", fingerprint="f")]
    if train is not None:
        events += [event(train - 2, "resume", step=step, digest="d")] if step else []
        events += [
            event(
                train,
                "train",
                step=step,
                lost_steps=lost,
                lost_seconds=lost * STEP_SECONDS,
                worst_seconds=80.0,
                **facts,
            )
        ]
    return events


EVENTS = sorted(
    [
        event(0, "launch", command="./launch.sh 4gpu_bf16 mine.yaml", folder="/home/me"),
        *start(12, 40),
        *saves(1, 42, 40),
        event(1600, "stop", cause="peer", step=43, reason="the connection to rank 1 broke"),
        event(1601, "stop", cause="SIGKILL", step=43, reason="rank 1 was killed by SIGKILL (out of memory?)"),
        event(1610, "restart", attempt=1, cause="SIGKILL", step=43, wait_seconds=5.0, words="a rank was killed"),
        *start(1622, 1660, step=40, lost=3),
        event(1800, "verdict", exact=True, text="resume exact: 3/3 replayed steps bit-identical", step=43),
        *saves(41, 96, 1660),
        event(
            2500,
            "bad_batch",
            step=64,
            kind="spike",
            skipped=True,
            loss=9.1,
            grad_norm=51.0,
            score=40.0,
            sequences=[1, 2],
        ),
        event(2501, "recompute", step=64, equal=True, ranks=[]),
        event(2600, "skip", step=66, reason="budget", number=1),
        event(3700, "hang", rank=1, phase="step", step=97, seconds=61.0, stacks="hangs/1"),
        event(3702, "stop", cause="peer", step=97, reason="rank 1 is gone"),
        event(3710, "restart", attempt=2, cause="hang", step=97, wait_seconds=10.0, words="a hang"),
        *start(3730),
        event(3750, "stop", cause="exception", reason="OSError: nfs"),
        event(3760, "restart", attempt=3, cause="exception", step=97, wait_seconds=10.0, words="an exception"),
        *start(3780, 3820, step=95, lost=2, replay="2 lost steps cannot be compared: changed since they were taken"),
        *saves(96, 150, 3820),
        event(5830, "stop", cause="interrupted", step=150, reason="SIGTERM was received"),
        event(9430, "launch", command="./launch.sh 4gpu_bf16 mine.yaml", folder="/home/me"),
        *start(9442, 9480, step=150),
        event(9500, "rollback", from_step=151, to_step=150, reason="the loss diverged", skipped=[3]),
        *saves(151, 200, 9480),
        event(11300, "stop", cause="finished", step=200, reason="all 200 steps were taken"),
    ],
    key=lambda each: each["time"],
)


def write_month(project: Path, name: str = "mine", events: list[dict[str, Any]] = EVENTS, **facts: Any) -> Path:
    """Writes runs/NAME of a project, 200 steps long; the facts are those of written_runs.write_run."""
    folder = write_run(
        project,
        name,
        losses(),
        step_seconds=STEP_SECONDS,
        evaluations={100: {"val_loss": 3.5}, 200: {"val_loss": 3.3}},
        **facts,
    )
    (folder / "journal.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    outcome = {"outcome": facts.get("outcome", "finished"), "step": 200, "reason": "all 200 steps were taken"}
    (folder / "outcome.json").write_text(json.dumps(outcome))
    return folder
