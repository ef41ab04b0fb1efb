"""Starts a run again after an end that nobody asked for, as the table of restart/decide.py says.

It is the process that a person started, and imports no torch. It holds a lock in the run's folder (locks.SUPERVISOR), by which others know
that the run is supervised. Each decision stands in the journal: `restart` with its wait before it, or `gave_up`.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from trainer import files, launcher
from trainer.alerts.targets import targets_of
from trainer.alerts.watch import Words, watching
from trainer.config import cluster as clusters
from trainer.config.folders import checkpoints_folder
from trainer.config.load import dump, load_resolved
from trainer.config.schema import Config
from trainer.ending.causes import Cause
from trainer.ending.outcomes import Outcome
from trainer.errors import TrainerError
from trainer.history.screen import summary
from trainer.history.standing import present, standing_of
from trainer.history.words import words
from trainer.journal import JOURNAL, Journal, events_from, read_events
from trainer.launcher import CheckedLaunch, read_words, record_unreported, split_words
from trainer.locks import is_trained, lock_supervision
from trainer.restart.decide import Decision, End, decide, wait_seconds
from trainer.restart.ends import (
    Witness,
    adapted_micro_batch,
    end_of,
    is_enabled,
    lacks_room,
    memory_conditions,
    outcome_of,
)
from trainer.safety import request_file
from trainer.safety.forward import Forwarding
from trainer.text import duration, one_line

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
WAITS_STOPPED = "stopped while it waited to start again; start it to continue"

CLUSTER = "cluster.yaml"
"""The copy of the cluster file in the run's folder that its restarts go by."""


SAYS_ALL = (0, *(each.exit_code for each in (Outcome.REFUSED, Outcome.INTERRUPTED, Outcome.DIVERGED)))
"""Exit codes after which nothing is started again on any machine."""

DECISIONS = ("restart", "launch", "gave_up")
"""Events of the journal by which the first machine says what becomes of the run."""

ENDS_ALL = (Cause.FINISHED, Cause.INTERRUPTED, Cause.DIVERGED, Cause.REFUSED, Cause.SIGINT)
"""Causes of an end after which the first machine starts nothing again."""


class StopAsked(Exception):
    """Somebody asks a run to stop that waits to start again, or its hours are over."""


def supervise(typed: Sequence[str], checked: CheckedLaunch) -> int:
    """Launches a run, and launches it again as long as the table says so; returns the exit code of the last launch.

    typed  the launch as it was typed, which is checked anew before each restart
    """
    typed, witness = with_own_cluster(typed, checked), Witness()
    with Forwarding() as signals, alerting(checked.config, checked.folder, checked.webhook):
        while True:
            code = launcher.run_launch(checked, signals)
            if signals.was_stopped or not is_enabled(checked.config.restart, os.environ):
                return code
            end = witness.add(_end_of(checked, code), checked.config.restart.window_hours)
            decision = decide(end, checked.config.restart)
            learn_micro_batch(as_started(typed, checked), checked, decision)
            _tell(checked, end, decision)
            if decision.do == "stop":
                return code
            witness.restarts()
            try:
                _wait(checked, decision, signals)
                checked = check_again(as_started(typed, checked), decision, signals)
            except StopAsked:
                record_unreported(checked.folder, WAITS_STOPPED, cause=Cause.INTERRUPTED, outcome=Outcome.INTERRUPTED)
                return Outcome.INTERRUPTED.exit_code
            except (TrainerError, OSError) as error:
                why = f"its check before the restart failed: {one_line(error)}"
                Journal(checked.folder).write("gave_up", cause=Cause.REFUSED, step=end.step, words=why)
                raise


@contextmanager
def alerting(config: Config, folder: Path, webhook: str | None) -> Iterator[None]:
    """While the block runs, those whom `config.alerts` names are told of what happens to the run in `folder`.

    webhook  the URL that the recipe holds
    """
    targets, notices = targets_of(config.alerts, webhook, os.environ)
    for notice in notices:
        log.warning(notice)

    def of_the_day() -> str:
        now = present()
        return summary(standing_of(folder, now), now)

    with watching(folder, config.alerts, targets, Words(words, of_the_day)):
        yield


def follow(typed: Sequence[str], checked: CheckedLaunch) -> int:
    """Launches this machine's part of a run whose first machine decides, and again whenever that one does.

    What it decides stands in the run's journal, which all machines see. Returns the exit code of the last launch.
    """
    with Forwarding() as signals:
        while True:
            seen = _end_of_journal(checked.folder)
            code = launcher.run_launch(checked, signals)
            has_said_all = code in SAYS_ALL or signals.was_stopped
            if has_said_all or not is_enabled(checked.config.restart, os.environ):
                return code
            try:
                start = _decision_of_the_first(checked, seen, signals)
                if start is None:
                    return code
                words = [*as_started(typed, checked), f"resume_from_checkpoint={start}"]
                checked = adapted(words, signals)
            except StopAsked:
                return Outcome.INTERRUPTED.exit_code


def _end_of_journal(folder: Path) -> int:
    try:
        return (folder / JOURNAL).stat().st_size
    except OSError:
        return 0


def _decision_of_the_first(checked: CheckedLaunch, seen: int, signals: Forwarding) -> str | None:
    """Where the first machine begins again, as resume_from_checkpoint has it; None where it does not. raises StopAsked

    seen  the bytes of the journal that are of before the launch that has ended
    """
    is_first = True
    while True:
        for event in reversed(list(events_from(checked.folder, *DECISIONS, "start", "stop", start=seen))):
            if event["event"] == "start":
                break  # what stands before it led to the launch that has ended
            if event["event"] in ("restart", "launch"):
                return str(event.get("from_step") or "latest")
            if event["event"] == "gave_up" or event.get("cause") in ENDS_ALL:
                return None
        if is_first:
            log.warning("waiting for machine 0, which decides whether the run is started again; Ctrl+C ends this")
        is_first = False
        _sleep(1.0, signals, None, checked.config)


def _end_of(checked: CheckedLaunch, code: int) -> End:
    """How a launch ended; of a folder that cannot be read only what its exit code says."""
    try:
        return end_of(checked.config, checked.folder, checkpoints_folder(checked.config), code)
    except OSError as error:
        words = f"{checked.folder} cannot be read ({error.strerror})"
        return End(outcome=outcome_of(code), cause=Cause.DISK, words=words, micro_batch=checked.config.micro_batch)


def with_own_cluster(words: Sequence[str], checked: CheckedLaunch) -> Sequence[str]:
    """The words of a launch with a copy of its cluster file in the run's folder: somebody may edit that file meanwhile, or lose a GPU by which it was chosen."""
    copy = checked.folder / CLUSTER
    try:
        files.write_atomic(copy, checked.cluster.path.read_bytes())
    except OSError as error:
        log.warning("%s could not be written (%s): a restart reads %s anew", copy, error, checked.cluster.path)
        return words
    _, recipe, overrides = split_words(words)
    return [str(copy), recipe, *overrides]


def as_started(words: Sequence[str], before: CheckedLaunch) -> Sequence[str]:
    """The words of a launch with the settings that it has written down in place of its recipe, which somebody may edit meanwhile."""
    kept = before.folder / "config.yaml"
    try:
        is_its_own = _dump(load_resolved(kept)) == _dump(before.config)
    except (TrainerError, OSError):
        is_its_own = False
    cluster, _, _ = split_words(words)
    return [*([cluster] if cluster else []), str(kept)] if is_its_own else words


def _dump(config: Config) -> str:
    """Without where it begins, which a run that went back by itself says otherwise."""
    return dump(config.model_copy(update={"resume_from_checkpoint": "latest"}))


def check_again(words: Sequence[str], decision: Decision, signals: Forwarding) -> CheckedLaunch:
    """The launch that goes on with a run; waits for GPUs that are missing. raises TrainerError with what has to be fixed first"""
    start = "latest" if decision.from_step is None else str(decision.from_step)
    return adapted([*words, f"resume_from_checkpoint={start}"], signals)


def learn_micro_batch(words: Sequence[str], before: CheckedLaunch, decision: Decision) -> None:
    """Writes down the micro_batch that fits where the one before did not, so that every later start, on every machine, takes it."""
    if decision.micro_batch is not None:
        facts = {"configured": read_words(words).loaded.config.micro_batch, "now": decision.micro_batch}
        conditions = memory_conditions(before.config)
        Journal(before.folder).write("micro_batch", was=before.config.micro_batch, conditions=conditions, **facts)


def adapted(words: Sequence[str], signals: Forwarding | None = None) -> CheckedLaunch:
    """Checks a launch, with the micro_batch that the run has learnt to need, and on the GPUs that are here where a run that has begun may do so.

    raises  TrainerError; where GPUs are missing and the run has begun, it waits for them instead, until somebody asks to stop (StopAsked)
    """
    request = read_words(words)
    folder = request.folder
    learnt = adapted_micro_batch(folder, request.loaded.config)
    if learnt is not None:
        log.info("micro_batch is %d, since memory was too small for %d", learnt, request.loaded.config.micro_batch)
        words = [*words, f"micro_batch={learnt}"]
    cluster = _cluster_here(words, folder, signals)
    return launcher.check_launch(words, cluster) if cluster else launcher.check_launch(words)


def _cluster_here(words: Sequence[str], folder: Path, signals: Forwarding | None) -> clusters.Cluster | None:
    """The cluster that a run goes on with where this machine has too few GPUs for its file; None: the file as it is, or a run that begins."""
    request = read_words(words)
    settings, num_waits = request.loaded.config.restart, 0
    has_begun = folder.is_dir() and bool(read_events(folder, "start"))
    while has_begun and clusters.lacking_gpus(request.cluster) and is_enabled(settings, os.environ):
        here = clusters.count_gpus()
        if settings.allow_fewer_gpus and here and (fewer := _with_fewer(request.cluster, request.loaded.config, here)):
            log.warning("%d of %d GPUs are here: going on with those", here, request.cluster.num_local_processes)
            return fewer
        wait = wait_seconds(num_waits)
        if num_waits == 0:
            log.warning("%s; waiting for them", clusters.lacking_gpus(request.cluster))
            Journal(folder).write("waiting", what="gpus", here=here, wanted=request.cluster.num_local_processes)
        num_waits += 1
        if signals is None:
            time.sleep(wait)  # nothing runs yet, and a signal ends the process
        else:
            _sleep(wait, signals, folder, request.loaded.config)
    return None


def _with_fewer(cluster: clusters.Cluster, config: Config, here: int) -> clusters.Cluster | None:
    """The cluster on as many of the GPUs here as divide the batch; None where only all of them would."""
    if cluster.num_machines > 1:
        return None
    number = next((n for n in range(here, 0, -1) if config.global_batch % (config.micro_batch * n) == 0), None)
    if number is None:
        return None
    return replace(cluster, num_processes=number, options=(*cluster.options, "--num_processes", str(number)))


@contextmanager
def supervised(checked: CheckedLaunch) -> Iterator[None]:
    """While the block runs, this process alone starts the run again, and the run's folder says so; a disk that takes no lock is no reason not to train.

    raises  LaunchError where another process does
    """
    with ExitStack() as stack:
        if is_enabled(checked.config.restart, os.environ):
            try:
                stack.enter_context(lock_supervision(checked.folder))
            except OSError as error:
                log.warning("%s cannot be locked (%s): nobody sees that the run is supervised", checked.folder, error)
        yield


def _tell(checked: CheckedLaunch, end: End, decision: Decision) -> None:
    """Says in the log and in the journal what is done after an end that nobody asked for."""
    settings, journal = checked.config.restart, Journal(checked.folder)
    if decision.do == "stop":
        if end.outcome == Outcome.FAILED or (end.outcome == Outcome.REFUSED and end.num_restarts):
            told = f"{end.num_restarts} restarts in {settings.window_hours:g} hours"
            log.error(f"not started again: {decision.why} ({told})")
            journal.write("gave_up", cause=end.cause, step=end.step, words=decision.why)
        return
    number = f"restart {end.num_restarts + 1} of {settings.max} in {settings.window_hours:g} hours"
    log.warning(f"{end.words}; {decision.why}, in {duration(decision.wait_seconds)} ({number}; Ctrl+C ends it)")
    facts = {"cause": end.cause, "step": end.step, "reason": end.words, "wait_seconds": decision.wait_seconds}
    if decision.from_step is not None:
        facts["from_step"] = decision.from_step
    journal.write("restart", attempt=end.num_restarts + 1, words=decision.why, **facts)
    if decision.do == "wait for room":
        journal.write("waiting", what="room", free=files.free_bytes(checkpoints_folder(checked.config)))


def _wait(checked: CheckedLaunch, decision: Decision, signals: Forwarding) -> None:
    """Waits as decided, and for ranks of before that are still ending. raises StopAsked"""
    config, folder, checkpoints = checked.config, checked.folder, checkpoints_folder(checked.config)
    _sleep(decision.wait_seconds, signals, folder, config)
    while decision.do == "wait for room" and lacks_room(config, folder, checkpoints):
        _sleep(decision.wait_seconds, signals, folder, config)
    if is_trained(folder):
        log.warning("a rank of the launch before is still there (does its disk answer?): waiting for its end")
        Journal(folder).write("waiting", what="ranks")
    while is_trained(folder):
        _sleep(1.0, signals, folder, config)


def _sleep(seconds: float, signals: Forwarding, folder: Path | None, config: Config) -> None:
    """Sleeps. raises StopAsked where a signal, a request in the run's folder (None: it is asked of another machine), or the run's own limit asks to stop"""
    ends = time.monotonic() + seconds
    while True:
        if signals.was_stopped or launcher.hours_are_over(config):
            raise StopAsked
        if folder is not None and (asked := request_file.look(folder)) and asked.do == "stop":
            request_file.withdraw(folder, asked)
            Journal(folder).write("request", do="stop", by=asked.by, id=asked.id)
            raise StopAsked
        if time.monotonic() >= ends:
            return
        time.sleep(min(LOOK_SECONDS, max(0.0, ends - time.monotonic())))
