"""What a run does that has diverged: it goes back to before that and steps over the data, as often as `safety.rollback.max` says, or it is over.

The run ends itself. What it left is set aside first, then it is written down what the next launch steps over, then the outcome: killed in
between, the next launch begins before the divergence in any case, and finds it again where it was not written down yet.
"""

import logging
import os

from trainer.checkpoint.resume.diverged import DIVERGED, never_went_well
from trainer.collectives import broadcast_from_main
from trainer.ending.launcher import FAILURE_PIPE
from trainer.ending.outcomes import Ending, Outcome
from trainer.errors import TrainerError
from trainer.journal import Journal, read_events
from trainer.metrics.reporter import SAVED
from trainer.run.build import Run
from trainer.run.identity import replay_key
from trainer.safety.rollback import num_in_a_row, read_rollbacks, write_rollbacks
from trainer.text import numbered

log = logging.getLogger(__name__)


def learn_rollbacks(run: Run, resumed_step: int | None) -> None:
    """Takes in what an earlier launch decided to step over; called on every rank once the run stands where it begins, before its outputs are opened."""
    run.rollbacks.learn(broadcast_from_main(lambda: read_rollbacks(run.folder)), resumed_step or 0)
    run.loader.stepped_over = run.rollbacks.positions
    if not run.rollbacks.stretches:
        return
    facts = {**run.reporter.replay_facts, "stepped_over": [[one.begin, one.end] for one in run.rollbacks.stretches]}
    run.reporter.replay_by(replay_key(facts), facts)
    sequences = sum(end - begin for begin, end in run.rollbacks.positions)
    if not sequences:
        return
    places = numbered(len(run.rollbacks.positions), "place")
    log.info("%s sequences of the data are stepped over, at %s, since the run has diverged there", sequences, places)


def leave_divergence(run: Run, ending: Ending) -> Ending:
    """Sets aside what a run that has diverged saved since, and decides whether it goes back; called on every rank."""
    first_unsure = run.guard.first_unsure_step
    if run.rollbacks.is_split:
        first_unsure = (run.rollbacks.agreed or 0) + 1
    back_to, why_not = broadcast_from_main(lambda: _where_to(run, first_unsure))
    if back_to is None:
        run.checkpointer.leave_diverged(first_unsure)
        return Ending(ending.outcome, f"{ending.reason}; {why_not}") if why_not else ending
    run.checkpointer.leave_diverged(first_unsure, whole_run=True)
    broadcast_from_main(lambda: _write_down(run, first_unsure, back_to, ending.reason))
    over = (
        "" if run.rollbacks.is_split else f", stepping over the data of the steps {first_unsure} to {run.progress.step}"
    )
    where = f"back to step {back_to}{over}"
    if FAILURE_PIPE in os.environ:  # `trainer launch` is there
        return Ending(Outcome.ROLLBACK, f"{ending.reason}; {where}")
    return Ending(Outcome.DIVERGED, f"{ending.reason}; start it again to go on: {where}")


def _where_to(run: Run, first_unsure: int) -> tuple[int | None, str]:
    """The step that the run goes back to, on rank 0; None with the reason why it does not, which is empty where none was asked for."""
    most = run.config.safety.rollback.max
    if not (run.guard.has_diverged or run.rollbacks.is_split) or most == 0:
        return None, ""
    if first_unsure == 0:
        return None, "when that began is not known, so nothing is rolled back"
    known = {*read_rollbacks(run.folder), *run.rollbacks.stretches}
    if (number := num_in_a_row(known, first_unsure)) >= most:
        return None, f"it was rolled back {number} times in a row before (safety.rollback.max)"
    entries = run.checkpointer.store.entries()
    if before := [entry.number for entry in entries if entry.number < first_unsure and entry.manifest is not None]:
        return max(before), ""
    going = [{"event": "set_aside", "step": entry.number, "reason": DIVERGED} for entry in entries]
    if not (run.folder / SAVED).exists() or never_went_well([*read_events(run.folder), *going]):
        return 0, ""
    return None, f"there is no checkpoint from before step {first_unsure} to go back to"


def _write_down(run: Run, first_unsure: int, back_to: int, reason: str) -> None:
    """Writes down what is stepped over, on rank 0. raises TrainerError"""
    progress = run.progress
    stretch = run.rollbacks.next_one(first_unsure, progress.step, progress.sequences, run.config.global_batch)
    try:
        write_rollbacks(run.folder, sorted({*read_rollbacks(run.folder), *run.rollbacks.stretches, stretch}))
    except OSError as error:
        raise TrainerError(
            f"the run has diverged ({reason}), and {run.folder} cannot be written ({error.strerror or error}), so that it could go back; make room "
            "or fix that disk, and start it again"
        ) from None
    facts = {"first_step": first_unsure, "sequences": [stretch.begin, stretch.end]}
    Journal(run.folder).write("rollback", from_step=progress.step, to_step=back_to, reason=reason, **facts)
