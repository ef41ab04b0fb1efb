"""What came of a run, in a few lines, from its files alone: for the end of `./launch.sh`, and for the morning after."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.format.store import CheckpointStore
from trainer.config.folders import command_line, typed
from trainer.ending.outcome_file import read_outcome
from trainer.ending.outcomes import Ending, Outcome
from trainer.errors import TrainerError
from trainer.journal import precision_words, read_events
from trainer.locks import is_trained
from trainer.metrics.curves import CURVE
from trainer.metrics.totals import Totals, totals_of
from trainer.text import count, duration, printable, size, table

SAMPLE_TITLE = "It writes now:"


def report(
    name: str,
    folder: Path,
    checkpoints: Path,
    baselines: dict[str, float] | None,
    prompt: str = "",
    command: str = "",
    happened: str = "",
) -> str:
    """The last losses beside the baselines, the sample, where everything lies, and what one would want next.

    prompt    how the recipe's samples begin
    command   what starts the run again; by default what its journal says of the last launch
    happened  what happened on the way (history/account.py)
    """
    outcome = read_outcome(folder)
    if outcome is None:
        how = command_line("CLUSTER", "RECIPE", f"name={name}")
        raise TrainerError(f"there is no run {name} in {folder.parent}; start one with: {how}")
    totals, events = totals_of(folder / CURVE), read_events(folder, "launch", "start", "precision")
    computed = f"\ncomputed in {words}" if (words := precision_words(events)) else ""
    parts = [
        _headline(name, outcome, totals) + computed,
        _losses(totals, baselines),
        _tasks(totals.newest),
        happened,
        _sample(outcome),
        _places(folder, checkpoints, outcome),
        _next(outcome, folder, CheckpointStore(checkpoints), prompt, command or last_command(folder, events)),
    ]
    return "\n\n".join(part for part in parts if part)


def last_line(ending: Ending, step: int, folder: Path) -> str:
    """How a run ended and what it came to, as the last line of its log."""
    totals = totals_of(folder / CURVE)
    parts = [f"{ending.outcome} at step {step}: {ending.reason}"]
    if totals.tokens_per_second:
        spent = f"{count(totals.tokens)} tokens in {duration(totals.seconds)} of training"
        parts.append(f"{spent}, {count(totals.tokens_per_second)} tokens/s")
    evaluations = (totals.first_evaluation, totals.last_evaluation)
    losses = [each for each in evaluations if each and each["val_loss"] is not None]
    if losses:
        shown = {each["step"]: f"{each['val_loss']:.4f} at step {each['step']}" for each in losses}
        parts.append(f"validation loss {', '.join(shown.values())}")
    return "; ".join(parts)


def _headline(name: str, outcome: dict[str, Any], totals: Totals) -> str:
    how, step = str(outcome["outcome"]), outcome["step"]
    if how == Outcome.RUNNING:  # the outcome's step is the one it started from
        how, step = "running, or killed", max(step, totals.step)
    spent = f"; {count(totals.tokens)} tokens in {duration(totals.seconds)} of training" if totals.tokens else ""
    resumed = f"\n{outcome['resume']}" if outcome.get("resume") else ""
    untidy = f"\n{outcome['untidy']}; start it again to repeat that" if outcome.get("untidy") else ""
    attempt = outcome.get("last_attempt")
    refused = f"\nthe last start of it was refused: {attempt['reason']}" if attempt else ""
    return f"{name}: {how} at step {step} ({outcome['reason']}){spent}{resumed}{untidy}{refused}"


def _losses(totals: Totals, baselines: dict[str, float] | None) -> str:
    losses, last = totals.recent_losses, totals.last_evaluation
    rows: list[tuple[str, str, str]] = [("", "nats per token", "")]
    if losses:
        rows.append(("training loss", f"{sum(losses) / len(losses):.3f}", f"mean of the last {len(losses)} steps"))
    if last and last["val_loss"] is None:
        rows.append(("validation loss", "-", f"no finite number at step {last['step']}"))
    elif last:
        extra = f"{last['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in last else ""
        rows.append(("validation loss", f"{last['val_loss']:.3f}", extra))
    if baselines:
        rows.append(("bigram model", f"{baselines['bigram']:.3f}", "on the same validation text"))
        rows.append(("unigram model", f"{baselines['unigram']:.3f}", ""))
    return table(rows) if len(rows) > 1 else ""


def _tasks(newest: dict[str, Any]) -> str:
    """The newest accuracy of each task, beside that of guessing."""
    tasks = [key.removesuffix("/acc") for key in newest if key.endswith("/acc")]
    return "\n".join(f"  {task}  {_accuracies(task, newest)}" for task in tasks)


def _accuracies(task: str, numbers: dict[str, Any]) -> str:
    chance = numbers.get(f"{task}/chance")
    known = [(name, numbers.get(f"{task}/{name}")) for name in ("acc", "acc_norm")]
    shown = ", ".join(f"{name} {value:.2f}" for name, value in known if value is not None)
    return shown if chance is None else f"{shown} (chance {chance:.2f})"


def _sample(outcome: dict[str, Any]) -> str:
    text = re.sub(r"\n{3,}", "\n\n", printable(outcome.get("sample") or "").strip())
    return f"{SAMPLE_TITLE}\n\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines()) if text else ""


def _places(folder: Path, checkpoints: Path, outcome: dict[str, Any]) -> str:
    store = CheckpointStore(checkpoints)
    there = f"{checkpoints}  ({len(store.entries())}, {size(store.num_bytes())})"
    rows = [("checkpoints", there), ("TensorBoard", str(folder))]
    if outcome.get("exported"):
        rows.append(("exported model", outcome["exported"]))
    return "\n".join(f"  {what:15s} {where}" for what, where in rows)


def last_command(folder: Path, events: Sequence[Mapping[str, Any]]) -> str:
    """What starts a run again: what was typed at its last launch, or a launch of the settings that it keeps."""
    typed_before = [event for event in events if event["event"] == "launch" and "command" in event]
    if not typed_before:
        return command_line(str(folder / "config.yaml"))
    command, place = str(typed_before[-1]["command"]), str(typed_before[-1].get("folder", ""))
    return f"cd {shlex.quote(place)} && {command}" if place and place != str(Path.cwd()) else command


def _next(outcome: dict[str, Any], folder: Path, store: CheckpointStore, prompt: str, command: str) -> str:
    """Commands, the likeliest wanted first: a run that ended before its time is to go on, one that goes on is to be watched."""
    run, how = typed(folder), outcome["outcome"]
    steps = [entry.step for entry in store.entries() if entry.step is not None]
    lines = []
    if how == Outcome.RUNNING and is_trained(folder):
        lines.append(f"tail -f {shlex.quote(str(folder / 'train.log'))}")
    elif how != Outcome.FINISHED:
        lines.append(_again(command, how, max(steps, default=None)))
    if steps:
        lines.append(command_line("generate", run, *(["--prompt", prompt] if prompt else [])))
    lines.append(command_line("tensorboard", run))
    if steps:
        lines.append(command_line("checkpoints", "ls", run))
    return "\n".join(["Next:", *(f"  {line}" for line in lines)])


def _again(command: str, outcome: Outcome, newest: int | None) -> str:
    """The command that goes on, and what it does."""
    does = "starts from the beginning: no checkpoint was made" if newest is None else f"goes on from step {newest}"
    if outcome == Outcome.DIVERGED:
        return f"{command} optimizer.lr=...    # {does}; with a lower rate, or it diverges again"
    return f"{command}    # {does}"
