"""What came of a run, in a few lines, from its files alone: for the end of `./launch.sh`, and for the morning after."""

import re
import shlex
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import TrainerError
from trainer.journal import precision_words, read_events
from trainer.metrics.curves import CURVE, read_records
from trainer.metrics.outcome import read_outcome
from trainer.text import count, duration, size, table


def report(name: str, folder: Path, checkpoints: Path, baselines: dict[str, float] | None) -> str:
    """The last losses beside the baselines, the sample, where everything lies, and what one would want next."""
    outcome = read_outcome(folder)
    records = read_records(folder / CURVE)
    if outcome is None:
        raise TrainerError(
            f"there is no run {name} in {folder.parent}; start one with: ./launch.sh CLUSTER RECIPE name={name}"
        )
    parts = [
        _headline(name, outcome, records) + _precision(read_events(folder)),
        _losses(records, baselines),
        _tasks(records),
        _sample(outcome),
        _places(folder, checkpoints, outcome),
        _next(name, folder),
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(name: str, outcome: dict[str, Any], records: list[dict[str, Any]]) -> str:
    kind, step = outcome["outcome"], outcome["step"]
    if kind == "running":  # the outcome's step is the one it started from
        kind, step = "running, or killed", max([step, *(record["step"] for record in records[-1:])])
    steps = [record for record in records if "loss" in record]
    seconds = sum(record["step_seconds"] for record in steps)
    spent = f"; {count(steps[-1]['tokens'])} tokens in {duration(seconds)} of training" if steps else ""
    resumed = f"\n{outcome['resume']}" if outcome.get("resume") else ""
    untidy = f"\n{outcome['untidy']}; start it again to repeat that" if outcome.get("untidy") else ""
    attempt = outcome.get("last_attempt")
    refused = f"\nthe last start of it was refused: {attempt['reason']}" if attempt else ""
    return f"{name}: {kind} at step {step} ({outcome['reason']}){spent}{resumed}{untidy}{refused}"


def _precision(events: list[dict[str, Any]]) -> str:
    words = precision_words(events)
    return f"\ncomputed in {words}" if words else ""


def _losses(records: list[dict[str, Any]], baselines: dict[str, float] | None) -> str:
    losses = [record["loss"] for record in records if record.get("loss") is not None][-20:]
    evaluations = [record for record in records if "val_loss" in record]
    rows: list[tuple[str, str, str]] = [("", "nats a token", "")]
    if losses:
        rows.append(("training loss", f"{sum(losses) / len(losses):.3f}", f"mean of the last {len(losses)} steps"))
    if evaluations:
        last = evaluations[-1]
        extra = f"{last['bits_per_byte']:.3f} bits a byte" if "bits_per_byte" in last else ""
        rows.append(("validation loss", f"{last['val_loss']:.3f}", extra))
    if baselines:
        rows.append(("bigram model", f"{baselines['bigram']:.3f}", "on the same validation text"))
        rows.append(("unigram model", f"{baselines['unigram']:.3f}", ""))
    return table(rows) if len(rows) > 1 else ""


def _tasks(records: list[dict[str, Any]]) -> str:
    """The newest accuracy of each task, beside that of guessing."""
    newest: dict[str, Any] = {}
    for record in records:
        if "val_loss" in record:
            newest.update(record)
    tasks = [key.removesuffix("/acc") for key in newest if key.endswith("/acc")]
    return "\n".join(f"  {task}  {_accuracies(task, newest)}" for task in tasks)


def _accuracies(task: str, numbers: dict[str, Any]) -> str:
    chance = numbers.get(f"{task}/chance")
    known = [(name, numbers.get(f"{task}/{name}")) for name in ("acc", "acc_norm")]
    shown = ", ".join(f"{name} {value:.2f}" for name, value in known if value is not None)
    return shown if chance is None else f"{shown} (chance {chance:.2f})"


def _sample(outcome: dict[str, Any]) -> str:
    text = re.sub(r"\n{3,}", "\n\n", (outcome.get("sample") or "").strip())
    return "It writes now:\n\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines()) if text else ""


def _places(folder: Path, checkpoints: Path, outcome: dict[str, Any]) -> str:
    store = CheckpointStore(checkpoints)
    rows = [
        ("checkpoints", f"{checkpoints}  ({len(store.entries())}, {size(store.num_bytes())})"),
        ("TensorBoard", str(folder)),
    ]
    if outcome.get("exported"):
        rows.append(("exported model", outcome["exported"]))
    return "\n".join(f"  {what:15s} {where}" for what, where in rows)


def _next(name: str, folder: Path) -> str:
    """Commands that find this run: by its name in the usual folder, by its path elsewhere."""
    folder = folder.resolve()
    is_usual = folder == (files.project_folder() / "runs" / name).resolve()
    run = name if is_usual else shlex.quote(str(folder))
    return "\n".join(
        (
            "Next:",
            f"  .venv/bin/trainer generate {run} --prompt 'To be, or not'",
            f"  ./launch.sh tensorboard {run}",
            f"  .venv/bin/trainer checkpoints ls {run}",
        )
    )
