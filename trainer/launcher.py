"""The parent of a launch: picks the cluster file, checks the run, starts the launcher, waits, and gives the run's own exit code.

`accelerate launch` returns 1 for every failure, dies before our code runs when a precision's library is missing, and gives each process one
thread. So the check comes before it, and the result is read from runs/NAME/outcome.json after it. It runs in a process of its own, whose
program is launcher_child.py. Imports no torch.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from trainer import files, start
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume import select
from trainer.checkpoint.resume.source import find_source
from trainer.config import cluster as clusters
from trainer.config.batch import accumulation_steps
from trainer.config.folders import check_can_be_made, checkpoints_folder, resume_point, run_folder
from trainer.config.load import Loaded, load
from trainer.config.schema import Config
from trainer.config.waiting import waiting
from trainer.config.words import split_words
from trainer.ending.causes import Cause, cause_of_signal
from trainer.ending.launcher import FAILURE_PIPE, ProcessFailure, how_it_ended, receive_failure
from trainer.ending.outcome_file import OUTCOME, exit_code, facts_at, read_outcome, what_it_said, write_outcome
from trainer.ending.outcomes import Outcome
from trainer.ending.ranks import read_failure
from trainer.errors import ConfigError, LaunchError
from trainer.hub import is_hub_name
from trainer.hub_settings import HubSetting, download_weights, settings_of_hub
from trainer.journal import Journal
from trainer.locks import check_not_trained, is_trained, lock_run
from trainer.metrics.curves import CURVE, last_record
from trainer.metrics.memory_advice import advice
from trainer.model.presets import preset_fields
from trainer.plugins import check_plugins
from trainer.safety.forward import ASKS, STOPS, Forwarding, handling
from trainer.safety.hang import LOOK_SECONDS, Watch, end_hang, watched
from trainer.safety.hang_watch import Hang
from trainer.safety.parent import STARTED_BY
from trainer.safety.time_limit import LAUNCHED_AT

if TYPE_CHECKING:
    from trainer.data.corpus import Corpus

log = logging.getLogger(__name__)

STOPPED_IN_BETWEEN = "stopped before its last checkpoint was whole; start it again to continue"
STOPPED_EARLY = "stopped before the first step; start it again to train"

BY_LAUNCHERS_END = "SIGTERM was received"
"""What the ranks take a killed launcher's end for: the kernel sends them that. Nobody has asked them to stop."""

_BEGAN = time.monotonic()
"""The moment from which max_hours counts, also for what is started again."""

SHUTDOWN_SECONDS = 600
"""How long a launcher waits for a last save after SIGTERM; torch's own 30 seconds are short for a large model."""

KILLED_SECONDS = 10.0
"""How long a process may take to be gone once it was killed; one that waits for its disk takes longer."""

SAID_BY_CODE = {
    outcome.exit_code for outcome in (Outcome.REFUSED, Outcome.INTERRUPTED, Outcome.DIVERGED, Outcome.ROLLBACK)
}
"""Exit codes of a rank that has said all there is; its outcome may be missing (a full disk), or another launch's."""


def load_run(recipe: str, overrides: Sequence[str]) -> Loaded:
    """Resolves a recipe and its overrides; where max_epochs says how long the run is, by the size of its data."""

    def count_sequences(config: Config) -> int:
        from trainer.data.corpus import count_sequences  # numpy, which nothing else here needs

        return count_sequences(config)

    return load(recipe, overrides, count_sequences)


@dataclass(frozen=True)
class Request:
    """What a person asks to have launched: read, and right in itself; whether this machine can do it is another question."""

    cluster: clusters.Cluster
    recipe: str
    overrides: list[str]
    loaded: Loaded

    @property
    def folder(self) -> Path:
        """runs/NAME."""
        return run_folder(self.loaded.config)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a launch is given."""
        return {
            **os.environ,
            **start.SAFE_PATH,
            **waiting(os.environ),
            clusters.ASKED_PRECISION: self.cluster.precision,
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS)),
            **({"ACCELERATE_USE_CPU": "true"} if self.cluster.use_cpu else {}),
            **self.cluster.environment,
        }


def read_words(words: Sequence[str]) -> Request:
    """Reads `[CLUSTER] [RECIPE] [key=value ...]`, which by default are the file that fits this machine and the Shakespeare run."""
    cluster_name, recipe, overrides = split_words(words)
    cluster = clusters.read_cluster(cluster_name or clusters.fitting_cluster())
    loaded = load_run(recipe, overrides)
    accumulation_steps(loaded.config.global_batch, loaded.config.micro_batch, cluster.num_processes)
    if loaded.config.model.preset is not None:
        preset_fields(loaded.config.model.preset)
    return Request(cluster, recipe, overrides, loaded)


@dataclass(frozen=True)
class CheckedLaunch:
    """A launch that was checked: what will be run, and where its outcome will stand."""

    config: Config
    cluster: clusters.Cluster
    command: list[str]
    environment: dict[str, str]
    folder: Path
    hub_settings: tuple[HubSetting, ...] = ()
    """The settings that name something of the hub, each with its commit, which the processes are given."""
    webhook: str | None = field(default=None, repr=False)
    """The URL in the recipe to which alerts go: a secret, which no config holds."""

    @property
    def decides(self) -> bool:
        """Whether this machine, the first or the only one, decides what becomes of the run; the others do as it does."""
        return self.cluster.machine_rank == 0


def check_launch(words: Sequence[str], cluster: clusters.Cluster | None = None) -> CheckedLaunch:
    """Checks `[CLUSTER] [RECIPE] [key=value ...]` as far as it goes without torch, and says what to run; `cluster` takes the place of theirs."""
    request = read_words(words)
    request = replace(request, cluster=cluster) if cluster else request
    if lacking := clusters.lacking_gpus(request.cluster):
        raise ConfigError(lacking)
    checked = check_request(request)
    if checked.decides:
        check_not_trained(checked.folder)
    download_weights(checked.hub_settings, checked.config)
    return checked


def check_request(request: Request) -> CheckedLaunch:
    """The same but for what may be otherwise on another machine or at another time: the GPUs that are here, and whether the run is alive."""
    given = request.loaded.config
    check_plugins(given.plugins)
    folder, checkpoints = run_folder(given), checkpoints_folder(given)
    check_can_be_made("runs_folder", folder)
    check_can_be_made("checkpoints_folder", checkpoints)
    select.check(CheckpointStore(checkpoints), resume_point(given), given.max_steps, folder)
    _check_source(given)
    config, overrides, hub_settings = with_commits(request.recipe, request.overrides, given)
    # `accelerate launch` dies on fp8 where no library for it is installed; the ranks decide about it, with its reason.
    cluster = request.cluster
    precision = "bf16" if cluster.precision == "fp8" else cluster.precision
    options = ["--config_file", str(cluster.path), "--mixed_precision", precision, *cluster.options]
    train = ["trainer", "train", request.recipe, *overrides]
    command = start.command("trainer.launcher_child", *options, start.SCRIPT, *train)
    return CheckedLaunch(config, cluster, command, request.environment, folder, hub_settings, request.loaded.webhook)


def with_commits(
    recipe: str, overrides: Sequence[str], config: Config
) -> tuple[Config, list[str], tuple[HubSetting, ...]]:
    """A run in which everything of the hub is named with its commit: its config, the overrides that say so, and what was found."""
    found = settings_of_hub(config)
    if all(each.given == each.at_commit for each in found):
        return config, list(overrides), found
    overrides = [*overrides, *(each.override for each in found)]
    return load_run(recipe, overrides).config, overrides, found


def _check_source(config: Config) -> None:
    """Looks at the model that a run begins from, where it is one of this disk and will be read. raises ConfigError"""
    source = config.model.init_from
    if source is None or is_hub_name(source):
        return
    if select.look(CheckpointStore(checkpoints_folder(config)), resume_point(config)).manifest is None:
        find_source(source)


def check_data(config: Config) -> "Corpus":
    """Opens the data and the tasks of a run as its processes will; DataError and ConfigError say what is wrong with them."""
    from trainer.data.corpus import open_corpus
    from trainer.evaluation.tasks import open_tasks

    corpus = open_corpus(config.data, config.sequence_length)
    open_tasks(config.evaluation.tasks, config.evaluation.task_items, files.project_folder(), fetch=False)
    return corpus


def newest_step(config: Config) -> int | None:
    """The step of the newest checkpoint on disk, by its folder's name; None when there is none."""
    folder = checkpoints_folder(config)
    steps = [int(match[1]) for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return max(steps, default=None)


def is_finished(checked: CheckedLaunch) -> bool:
    """Whether the run took all its steps before, or was declared finished, left nothing undone, and nothing else is asked of it."""
    outcome = read_outcome(checked.folder)
    if checked.config.resume_from_checkpoint != "latest" or outcome is None:
        return False
    if outcome["outcome"] != Outcome.FINISHED or "untidy" in outcome:
        return False
    newest = newest_step(checked.config) or 0
    return newest >= checked.config.max_steps or outcome.get("planned_steps") == checked.config.max_steps


def finished_words(checked: CheckedLaunch) -> str:
    """That there is nothing to do, and what trains on."""
    name, outcome = checked.config.name, read_outcome(checked.folder) or {}
    planned, step = outcome.get("planned_steps"), outcome.get("step", 0)
    if planned is not None and step < planned:
        how = f"go on from there with resume_from_checkpoint={step}"
        return f"{name} was declared finished at step {step} of {planned}: to train on all the same, {how}, or give a new run another name with name=..."
    return f"{name} is finished: raise max_steps to train on, or give a new run another name with name=..."


def hours_are_over(config: Config) -> bool:
    """Whether this process is there for longer than max_hours."""
    return config.max_hours is not None and time.monotonic() - _BEGAN >= config.max_hours * 3600.0


@contextmanager
def stopped_early() -> Iterator[None]:
    """A signal in this block, where nothing runs yet, ends the process like an interrupted run: the scheduler queues it again."""

    def end(_number: int, _frame: object) -> None:
        log.warning(STOPPED_EARLY)
        sys.exit(Outcome.INTERRUPTED.exit_code)

    with handling(ASKS, lambda *_: None), handling(STOPS, end):
        yield


def run_launch(checked: CheckedLaunch, signals: Forwarding) -> int:
    """Runs `accelerate launch`, has signals passed on to it, and returns the run's own exit code; a run that has gone back is started again at once."""
    while (code := _launch_once(checked, signals)) == Outcome.ROLLBACK.exit_code:
        checked = replace(checked, command=[*checked.command, "resume_from_checkpoint=latest"])
    return code


def _launch_once(checked: CheckedLaunch, signals: Forwarding) -> int:
    before = read_outcome(checked.folder)
    here, there = os.pipe()
    environment = {
        **checked.environment,
        LAUNCHED_AT: str(_BEGAN),
        FAILURE_PIPE: str(there),
        STARTED_BY: str(os.getpid()),
    }
    with open(here, "rb"), open(there, "wb"):
        with watched(checked.config.hang, checked.cluster.num_local_processes) as watch:
            environment.update(watch.environment)
            child = subprocess.Popen(checked.command, env=environment, start_new_session=True, pass_fds=[there])
            signals.to(child)
            code, hang = _wait(child, watch)
            words = end_hang(checked.folder, child.pid, hang) if hang else ""
            child.wait()
            signals.to(None)
            if hang or code < 0:
                _wait_for_ranks(checked.folder, watch, signals)
        if hang:
            _record(checked, words, cause=Cause.HANG)
            return Outcome.FAILED.exit_code
        failure = receive_failure(here)
        code = resolve_exit_code(checked, before, code, failure, signals.was_stopped)
        if code != Outcome.ROLLBACK.exit_code or not signals.was_stopped:
            return code
        _record(
            checked,
            STOPPED_IN_BETWEEN,
            cause=Cause.INTERRUPTED,
            outcome=Outcome.INTERRUPTED,
            over=(Outcome.ROLLBACK,),
        )
        return Outcome.INTERRUPTED.exit_code


def _wait(child: "subprocess.Popen[bytes]", watch: Watch) -> tuple[int, Hang | None]:
    """Waits for a launcher; returns its exit code, or the hang of its ranks, which still hang."""
    while True:
        try:
            return child.wait(LOOK_SECONDS), None
        except subprocess.TimeoutExpired:
            if hang := watch.look():
                return 0, hang


def resolve_exit_code(
    checked: CheckedLaunch, before: dict[str, Any] | None, code: int, failure: ProcessFailure | None, was_stopped: bool
) -> int:
    """The run's own exit code, from the rank that ended with it or from the outcome; a failure that no rank could report is recorded."""
    if failure and failure.exit_code in SAID_BY_CODE:
        return failure.exit_code
    said = what_it_said(before, read_outcome(checked.folder))
    is_open = said is None or said["outcome"] == Outcome.RUNNING
    if was_stopped and is_open:
        reason = STOPPED_IN_BETWEEN if said is not None and said["reason"] == "training" else STOPPED_EARLY
        if said is None:
            log.warning(reason)
        else:
            _record(checked, reason, cause=Cause.INTERRUPTED, outcome=Outcome.INTERRUPTED)
        return Outcome.INTERRUPTED.exit_code
    if code < 0 and not was_stopped and said is not None and said["reason"] == BY_LAUNCHERS_END:
        reason = f"{how_it_ended('the launcher', code)}; its ranks have saved"
        _record(checked, reason, cause=cause_of_signal(-code), over=(Outcome.INTERRUPTED,))
        return Outcome.FAILED.exit_code
    # Of a rank that was killed the others know only that they lost it, and the launcher knows the signal.
    was_lost = said is not None and said["outcome"] == Outcome.FAILED and failure is not None and failure.was_killed
    if code and (is_open or was_lost):
        cause = cause_of_signal(-failure.exit_code) if failure and failure.was_killed else None
        _record(checked, _reason(checked, code, failure), cause=cause)
    return exit_code(code, said)


def _wait_for_ranks(folder: Path, watch: Watch, signals: Forwarding) -> None:
    """Waits for ranks that a killed launcher left behind: they were sent a SIGTERM when it ended, and save. What does not end is killed."""
    for rank in watch.ranks():
        rank.resume()  # one that is suspended hears no SIGTERM
    ends = time.monotonic() + SHUTDOWN_SECONDS
    while (watch.ranks() or is_trained(folder)) and time.monotonic() < ends and not signals.was_cut:
        time.sleep(0.2)
    left = watch.ranks()
    for rank in left:
        log.warning("process %d is a rank that its launcher left behind and that does not end: it is killed", rank.pid)
        rank.kill()
    psutil.wait_procs(left, timeout=KILLED_SECONDS)


def _reason(checked: CheckedLaunch, code: int, failure: ProcessFailure | None) -> str:
    """Why a launch failed: in the words that the rank left, or by what ended it."""
    if failure is None:
        return how_it_ended("the launcher", code)
    told = read_failure(checked.folder, failure.rank)
    if told and told.pid == failure.pid:
        return f"rank {told.rank}: {told.reason}"
    ended = how_it_ended(f"rank {failure.rank}", failure.exit_code)
    if failure.exit_code != -signal.SIGKILL:
        return ended
    return f"{ended}; if memory was short: {advice(checked.config.micro_batch, checked.cluster.precision)}"


def _record(checked: CheckedLaunch, reason: str, **facts: Any) -> None:
    """The same of a launch; of one that does not decide a note in the journal alone, since the outcome is that of all machines."""
    if checked.decides:
        record_unreported(checked.folder, reason, **facts)
        return
    log.warning(reason)
    Journal(checked.folder).write(
        "machine", rank=checked.cluster.machine_rank, host=socket.gethostname(), reason=reason
    )


def record_unreported(
    folder: Path,
    reason: str,
    *,
    cause: Cause | None,
    outcome: Outcome = Outcome.FAILED,
    over: Collection[Outcome] = (Outcome.RUNNING, Outcome.FAILED),
) -> None:
    """Logs how a run ended whose processes could not say so, and writes it in place of these outcomes, and a cause into the journal."""
    log.warning(reason)
    now = read_outcome(folder)
    if now is None or now["outcome"] not in over:
        return
    try:
        with lock_run(folder):  # or another launch trains this run by now, and the outcome is that one's
            last = last_record(folder / CURVE)
            step = last["step"] if last else now["step"]
            write_outcome(folder, outcome, step=step, reason=reason, **facts_at(now, step))
            if cause is not None:
                Journal(folder).write("stop", cause=cause, step=step, reason=reason)
    except (LaunchError, OSError) as error:
        log.warning("%s does not say so: %s", folder / OUTCOME, error)
