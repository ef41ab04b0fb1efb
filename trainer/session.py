"""One launch of a run, from its config to its outcome.json, and what a finished run leaves: a sample of text and the exported model."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trainer.beats import beat
from trainer.checkpoint.format.manifest import folder_name
from trainer.collectives import broadcast_from_main
from trainer.config.folders import checkpoints_folder, command_line, run_folder, typed
from trainer.config.schema import Config
from trainer.determinism import SWITCH_OFF, missing_form_explained
from trainer.ending import ranks
from trainer.ending.causes import Cause, cause_of_error
from trainer.ending.outcome_file import OUTCOME, facts_at, read_outcome, write_outcome, write_refusal
from trainer.ending.outcomes import Ending, Outcome
from trainer.errors import LaunchError, RankLostError, TrainerError
from trainer.evaluation.samples import DRAWN
from trainer.finish import EXPORTED, export_final
from trainer.journal import Journal
from trainer.launch.environment import decided_precision, others_wait
from trainer.launch.process_group import rank0_before_init
from trainer.locks import Lock, lock_run
from trainer.loop import train
from trainer.metrics.profiler import FOLDER as PROFILES
from trainer.report import last_line
from trainer.run.begin import begin_run
from trainer.run.build import Run
from trainer.run.go_back import leave_divergence
from trainer.run.out_of_memory import out_of_memory_explained
from trainer.safety import request_file
from trainer.safety.parent import end_with_launcher
from trainer.safety.peers import end_soon, ended_with_peers
from trainer.safety.requests import Requests
from trainer.safety.stacks import write_on_signal
from trainer.safety.time_limit import LAUNCHED_AT, TimeLimit, launched_at

log = logging.getLogger(__name__)


def run_session(config: Config) -> int:
    """Trains until the run is finished or stopped; returns the exit code, the same that outcome.json states.

    Whatever happens, outcome.json states it: `refused` before the first step, `failed` after it, each with its reason. Signals are
    caught until it is written: the launcher sends one to every rank that outlives the first that fails.
    """
    folder, is_main = run_folder(config), os.environ.get("RANK", "0") == "0"
    run: Run | None = None
    beat(phase="starting")
    end_with_launcher()
    held = rank0_before_init(lambda: _take(folder))
    before, journal = read_outcome(folder), Journal(folder)

    def precision() -> str:
        return run.precision.record.mode if run else decided_precision()

    def end(error: RankLostError) -> None:
        _lose(folder, before, journal, run, error)
        os._exit(error.exit_code)

    with _requests(config, folder) as requests:
        try:
            with ended_with_peers(folder, end), _errors_explained(config, folder, precision):
                with _disk_errors_explained(folder):
                    _appear(folder)
                    _note(folder, before, Outcome.RUNNING, run, "starting")
                    run = begin_run(config, requests)
                _note(folder, before, Outcome.RUNNING, run, "training")
                ending = declared_finished(config, before, run.progress.step) or train(run)
                beat(phase="finishing")
                run.profiler.close()
                if ending.outcome == Outcome.DIVERGED:
                    ending = leave_divergence(run, ending)
                run.checkpointer.close()
                run.reporter.close(finished=ending.outcome == Outcome.FINISHED)
                conclude(run, before, ending)
                if is_main:
                    journal.write("stop", cause=Cause(ending.outcome), step=run.progress.step, reason=ending.reason)
                run.parallel.end(run.model)
                run.checkpointer.end(wait_for_copies=ending.outcome == Outcome.FINISHED)
            return ending.outcome.exit_code
        except RankLostError as error:
            _lose(folder, before, journal, run, error)
            raise
        except TrainerError as error:
            _journal_stop(journal, run, error)
            _fail(folder, before, Outcome.REFUSED if run is None else Outcome.FAILED, run, error)
            raise
        except BaseException as error:
            _journal_stop(journal, run, error)
            _leave_reason(folder, before, Outcome.FAILED, run, f"{type(error).__name__}: {error}")
            raise
        finally:
            if sys.exception() is not None:
                end_soon()
            if run is not None:  # closed already, unless it failed
                run.profiler.close()
                run.reporter.abandon()
            if held is not None:
                held.close()


def _take(folder: Path) -> Lock:
    """Takes the run's folder for this launch; where no other rank can have failed yet, what they left in earlier ones goes."""
    held = lock_run(folder)
    ranks.sweep_failures(folder, others_wait=others_wait())
    if LAUNCHED_AT not in os.environ:  # or `trainer launch` has done so, and what was asked since is for this start
        request_file.withdraw(folder)
    return held


def _requests(config: Config, folder: Path) -> Requests:
    """What this rank can be asked; rank 0 looks at the folder and the clock for all."""
    if os.environ.get("RANK", "0") != "0":
        return Requests()
    return Requests(folder, TimeLimit(config.max_hours, launched_at()) if config.max_hours else None)


def _appear(folder: Path) -> None:
    """Makes this rank known in the run's folder: SIGUSR2 writes its stacks there, and no reason of an earlier launch stands for it."""
    write_on_signal(folder, int(os.environ.get("RANK", "0")))
    ranks.withdraw_failure(folder)
    if os.environ.get("RANK", "0") == "0":
        ranks.sweep_failures(folder)


@contextmanager
def _errors_explained(config: Config, folder: Path, precision: Callable[[], str]) -> Iterator[None]:
    """What torch raises for a lost rank, for memory that is full and for a form that is missing becomes the paragraph that it means."""
    memory = out_of_memory_explained(folder / PROFILES, int(os.environ.get("RANK", "0")), config, precision)
    with ranks.broken_connections_explained(folder), memory, missing_form_explained(SWITCH_OFF):
        yield


@contextmanager
def _disk_errors_explained(folder: Path) -> Iterator[None]:
    """A disk that cannot be written in this block, before the first step, becomes a LaunchError.

    It is full, over quota, broken, read-only, or what is on it belongs to somebody else.
    """
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        if cause_of_error(error) != Cause.DISK and not isinstance(error, PermissionError):
            raise
        where = error.filename if isinstance(error, OSError) and error.filename else folder
        raise LaunchError(
            f"{where} cannot be used ({getattr(error, 'strerror', None) or error}); make room there, fix that disk or the rights on it, or set "
            "runs_folder and checkpoints_folder to another, and start again: no step was taken"
        ) from error


def _journal_stop(journal: Journal, run: Run | None, error: BaseException) -> None:
    """Notes how this process of the run ends by an error."""
    step = {"step": run.progress.step} if run else {}
    journal.write("stop", cause=cause_of_error(error), reason=f"{type(error).__name__}: {error}", **step)


def _lose(folder: Path, before: dict[str, Any] | None, journal: Journal, run: Run | None, error: RankLostError) -> None:
    """Writes down how this rank ends with another."""
    _journal_stop(journal, run, error)
    _fail(folder, before, Outcome(error.outcome), run, error)


def _fail(folder: Path, before: dict[str, Any] | None, outcome: Outcome, run: Run | None, error: TrainerError) -> None:
    """Writes down how the run ends by an error that is a paragraph; of the ranks that have the same one, the first prints it."""
    error.exit_code = outcome.exit_code
    if error.was_said:
        _note(folder, before, outcome, run, str(error))
    else:
        _leave_reason(folder, before, outcome, run, str(error))
        error.was_said = ranks.said_by_lower_rank(folder)


def _leave_reason(folder: Path, before: dict[str, Any] | None, outcome: Outcome, run: Run | None, reason: str) -> None:
    """Leaves why this rank fails for the other ranks, which wait for it, and in outcome.json."""
    try:
        ranks.leave_failure(folder, outcome, reason)
    except OSError as error:
        log.warning("the reason of the failure could not be left for the other ranks (%s): %s", error.strerror, reason)
    _note(folder, before, outcome, run, reason)


def _note(folder: Path, before: dict[str, Any] | None, outcome: Outcome, run: Run | None, reason: str) -> None:
    """Writes outcome.json on rank 0."""
    if os.environ.get("RANK", "0") != "0":
        return
    step = run.progress.step if run else before["step"] if before else 0
    with _logged_if_full(folder, outcome):
        if outcome == Outcome.REFUSED:
            write_refusal(folder, before, reason)
        else:
            write_outcome(folder, outcome, step=step, reason=reason, **_kept(before, run, step), pid=os.getpid())


@contextmanager
def _logged_if_full(folder: Path, outcome: str) -> Iterator[None]:
    """Where outcome.json cannot be written, that is logged, and neither the run nor the error that ended it is lost for it."""
    try:
        yield
    except OSError as error:
        log.warning("%s could not be written (%s), so it does not say: %s", folder / OUTCOME, error.strerror, outcome)


def _kept(before: dict[str, Any] | None, run: Run | None, step: int) -> dict[str, Any]:
    """What the outcome before says that still holds; nothing once a step was taken, since even the same step is another then."""
    return {} if run and run.consensus.latest else facts_at(before, step)


def conclude(run: Run, before: dict[str, Any] | None, ending: Ending) -> None:
    """Writes outcome.json, for a finished run after tidying up. Called on every rank; rank 0 works, the others wait, or take the sample with it."""
    step = run.progress.step
    facts = _kept(before, run, step)
    is_tidy = facts.get("exported_step") == step and (run.folder / EXPORTED).is_dir() and "untidy" not in facts
    is_untidy = ending.outcome == Outcome.FINISHED and not is_tidy
    if run.parallel.is_sharded and broadcast_from_main(lambda: is_untidy) and not run.accelerator.is_main_process:
        run.reporter.may_fail("the last sample", partial(sample, run))
    if not run.accelerator.is_main_process:
        return
    if is_untidy:
        facts.pop("untidy", None)
        facts.update(_tidy_up(run, step))
    if run.consensus.latest:
        facts["loss"] = run.consensus.latest.loss
    if run.reporter.verdict:
        facts["resume"] = run.reporter.verdict
    facts["val_loss"] = run.eval_schedule.loss_at(step)
    if run.eval_schedule.last_loss is not None:  # of an interrupted run it is that of an earlier step
        facts["last_val_loss"], facts["last_val_step"] = run.eval_schedule.last_loss, run.eval_schedule.last_step
    with _logged_if_full(run.folder, ending.outcome):
        write_outcome(run.folder, ending.outcome, step=step, reason=ending.reason, **facts)
    if "exported" in facts:
        log.info("the model is in %s; let it write: %s", facts["exported"], command_line("generate", typed(run.folder)))
    log.info(last_line(ending, step, run.folder))


def _tidy_up(run: Run, step: int) -> dict[str, Any]:
    """A sample of text and the exported model, as facts. The run has finished without them too: what failed is stated as `untidy`."""
    facts: dict[str, Any] = {}
    failures = []
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "sample": lambda: {"sample": sample(run)},
        "export": lambda: {"exported": str(_export(run)), "exported_step": step},
    }
    for what, work in works.items():
        try:
            facts.update(work())
        except Exception as error:
            words = str(error) if isinstance(error, (TrainerError, OSError)) else f"{type(error).__name__}: {error}"
            log.warning("the run has finished, but its %s failed: %s; start it again to repeat that", what, words)
            failures.append(f"its {what} failed: {words}")
    return {**facts, "untidy": "; ".join(failures)} if failures else facts


def declared_finished(config: Config, before: dict[str, Any] | None, step: int) -> Ending | None:
    """The end of a run that a person has declared finished at this step, and of which nothing else is asked since; else None."""
    if config.resume_from_checkpoint != "latest" or before is None:
        return None
    if (before["step"], before.get("planned_steps")) != (step, config.max_steps):
        return None
    return Ending(Outcome.FINISHED, f"declared finished at step {step} of {config.max_steps}")


def _export(run: Run) -> Path:
    return export_final(checkpoints_folder(run.config) / folder_name(run.progress.step), run.folder)


def sample(run: Run) -> str | None:
    """The first of them that is drawn, with its prompt; None where there are none."""
    return next((one.prompt + one.text for one in run.samples() if one.kind == DRAWN), None)
