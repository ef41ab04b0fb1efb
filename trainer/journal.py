"""runs/NAME/journal.jsonl: what happened to a run, event by event, in the order in which it happened.

One JSON object per line, only ever added to, by every process of the run (the trainer's ranks, its writer, the launcher). Each has `time`
(ISO 8601 in UTC, for people: nothing compares it, so a clock that jumps changes nothing), `event`, and the event's facts:

    launch        command, folder   what was typed to start it, and in which folder
    hub           setting, given, at_commit   what a setting of this run names on the hub, as it was written and with the commit that it means
                                    for this run from here on
    start         fingerprint       a launch begins, before it looks for a checkpoint; the fingerprint stands for the code, the settings and
                                    the packages: deaths under another one say nothing about a checkpoint. Besides how many processes it
                                    has, the precision that was decided (and instead_of which, because of what), whether blocks are
                                    compiled, and the machine
    preflight     conditions, seconds   a step and an evaluation of full shape were tried before the first one; step: why not, where not. With the
                                    speed at which ranks sum, and host: clocks, shared memory, limits (not_fine: those that are not)
    initial_weights  source, digest   it begins from another model: where its weights come from, their digest, the revision, what was changed
    resume        step, digest      it goes on from this checkpoint; digest: xxh3-128 of its manifest.json
    train         step, lost_steps, lost_seconds, worst_seconds   the first step after this one begins. lost_*: what was done before, and is
                                    done again; worst_seconds: the most that could have been lost at any moment of the launch before
    change        step, changes     what is another than it was in that checkpoint, by name: [before, now]
    save          step, digest      a checkpoint was committed; with what it cost (bytes, seconds, reason)
    save_failed   step, failure     it could not be written
    not_saved     step, tensor      there is no checkpoint of it, because a tensor of its weights or moments is not finite
    skip          step, reason      a save by budget was left out, because the disk was behind
    request       do, step, by, id   somebody asked for a `save` or a `stop`, and was answered at this step; saved: whether there is, or will
                                    be, a checkpoint of it. by: who, or a signal
    bad_batch     step, kind, skipped   loss or gradient norm were not finite, or a spike (with its score): which data that was, by position
                                    and sequences, and whether the update was skipped
    recompute     step, equal, ranks    the batch of a skipped step was computed again. Other numbers: a chip computes wrongly, and ranks are
                                    those whose own loss differed
    digest_differs  step, ranks, agreed   these ranks hold other weights or moments than the others (or than each other); all agreed at that step
    rollback      from_step, to_step, reason, sequences   the run diverged by from_step, and goes on from the checkpoint of to_step (0: from its
                                    beginning), stepping over these positions of the data: [first, the one after the last]; first_step: the
                                    first that is taken with other data
    prune         name, reason      an old checkpoint went
    set_aside     step, name, reason   a checkpoint lost its name, because its run has diverged
    remove        name              a person removed a checkpoint
    rename        name, was         a person gave the run another name
    lost_history  step, lacking     it goes on at this step, and these files of runs/NAME, of the steps before, were gone
    refusal       step, reason      a checkpoint was passed over
    verdict       exact, text       what the comparison of the replayed steps said
    writer        state             the writer process died (and another took its place), stands still, moves again, or is done without
    mirror        step, where       a copy on the mirror was made, or failed; second_place in journals of earlier versions
    precision     step, mode, reason  the step after this one begins in another precision than was decided; resumed: it was so before this launch
    slow          step, ratio, reasons    steps take `ratio` times as long as in the best stretch of the launch; reasons: what the machine shows
    slow_over     step, seconds     they no longer do; seconds: how long they did
    fork          run, step, checkpoint, digest, changed   it begins here, as a branch of another run at that step, with what was typed
    restart       attempt, cause, step, reason, words, wait_seconds   an end that nobody asked for: a launch follows after the wait (restart/decide.py); words: how it goes on
    hang          rank, phase, step, seconds, stacks   no progress for so long, and all were ended; rank: the one (ranks: those) behind; stacks: a file
    gave_up       cause, step, words    it is not started again, and why
    waiting       what                  a restart waits longer: for `gpus` (here, wanted), for `room` on the disk (free), or for `ranks` that still end
    machine       rank, host, reason    how the launch on another machine than the first one ended; what is done about it that one decides
    alert_failed  target, kind, text, failure, attempts   a message did not arrive: where to, what it would have said, and why
    micro_batch   was, now, configured, conditions   memory was too small: the run goes on with `now` wherever it is told `configured`, under
                                    these conditions
    stop          cause, step, reason    a process of the launch ended, or was found ended. step: how many steps were taken, by its own
                                    count or the last in metrics.jsonl; left out where nobody knows. cause: see ending/causes.py

A launch may leave several `stop` events, one a process, or none (SIGKILL, a power cut). The first that is not `peer`, `connection` or
`unknown` is its cause. `lost_events` in any event counts those before it that could not be written.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import files
from trainer.aliases import CAUSES, EVENTS

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class Journal:
    """Adds events to one run's journal. Writing never ends a run: what cannot be written is counted and logged."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._lost = 0

    def write(self, event: str, /, **facts: Any) -> None:
        """Adds one event with its facts, as one line in one write.

        The disk is not waited for: a killed process loses nothing by it, and the training thread may call this.
        """
        assert not facts.keys() & {"time", "event", "lost_events"}, "these names are the journal's own"
        lost = {"lost_events": self._lost} if self._lost else {}
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **_plain(facts), **lost}, allow_nan=False)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.append_line(self._path, line)
        except OSError as error:
            self._lost += 1
            if self._lost.bit_count() == 1:  # a full disk would say it at every event
                lost_now = f"the event {event!r} is lost, {self._lost} in a row by now"
                log.warning(f"the journal {self._path} could not be written ({error.strerror or error}): {lost_now}")
        else:
            self._lost = 0

    def count(self, event: str) -> int:
        """How often an event stands in it."""
        return sum(1 for _ in events_from(self._path.parent, event))


def branch_of(folder: Path) -> tuple[str, int] | None:
    """The run, and its step, that a run is a branch of (`trainer fork`); None for one that is none."""
    told = read_events(folder, "fork")
    return (str(told[-1]["run"]), int(told[-1]["step"])) if told else None


def read_events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Every whole event of a run's journal, oldest first; empty lines and those that a crash or a disk damaged are left out.

    kinds  the events that are wanted, all without; a month has a hundred thousand saves, and a few starts
    """
    return list(events_from(folder, *kinds))


def events_from(folder: Path, *kinds: str, start: int = 0) -> Iterator[dict[str, Any]]:
    """The same, one after another, from a byte on at which a line begins."""
    former = [old for old, new in EVENTS.items() if new in kinds]
    names = [f'"{kind}"'.encode() for kind in (*kinds, *former)]
    try:
        file = open(folder / JOURNAL, "rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        for line in file:
            if names and not any(name in line for name in names):
                continue
            event = parse_event(line)
            if event is not None and (not kinds or event["event"] in kinds):
                yield event


def precisions(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a run computed in, one after another: `fp8`, `bf16`; empty when nobody wrote it down."""
    modes: list[str] = []
    for event in events:
        if event["event"] == "start" and event.get("precision"):
            modes.append(str(event["precision"]))
        elif event["event"] == "precision":
            if event.get("resumed") and modes:
                modes.pop()  # what this launch decided it never computed in
            modes.append(str(event["mode"]))
    return [mode for number, mode in enumerate(modes) if number == 0 or modes[number - 1] != mode]


def precision_words(events: Sequence[Mapping[str, Any]]) -> str:
    """What a run computed in, and why that is not what was asked for: `bf16 instead of fp8, because ...`; empty when nobody wrote it down."""
    modes = precisions(events)
    starts = [event for event in events if event["event"] == "start"]
    changes = [event for event in events if event["event"] == "precision" and not event.get("resumed")]
    why = ""
    if changes and modes[-1] == changes[-1]["mode"]:
        why = f", because {changes[-1]['reason']}"
    elif starts and starts[-1].get("instead_of"):
        why = f" instead of {starts[-1]['instead_of']}, because {starts[-1]['because']}"
    return ", then ".join("fp32" if mode == "no" else mode for mode in modes) + why if modes else ""


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The event that a line holds, under today's names; None for one that is damaged."""
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("event"), str):
        return None
    kind, cause = content["event"], content.get("cause")
    now = {**content, "event": EVENTS.get(kind, kind)}  # under today's names
    return {**now, "cause": CAUSES.get(cause, cause)} if kind == "stop" and isinstance(cause, str) else now


def _plain(value: Any) -> Any:
    """A value as JSON has it: a number that is not finite is none, and what JSON does not know is its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)
