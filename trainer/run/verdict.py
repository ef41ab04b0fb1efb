"""Whether a run ends at a step and how, and whether the step is saved: by results that every rank has alike, so all decide the same."""

import math
from collections.abc import Sequence

from trainer.checkpoint.format.tensor_names import first_not_finite
from trainer.collectives import all_gather
from trainer.ending.outcomes import Ending, Outcome
from trainer.run.build import Run
from trainer.run.compare_digests import judge_digests
from trainer.safety.guard import SKIPS_IN_DOUBT
from trainer.step_result import SaveRequest, StepResult, Verdict

SAVED_FOR = {SaveRequest.WRITE: "budget", SaveRequest.SNAPSHOT: "snapshot"}
"""The reason of a save that rank 0's clock has requested."""

ASKED = "asked"
"""The reason of a save that somebody has asked for, by a command or a signal."""

ANOTHER_ASKED = "another process was asked to stop"


def judge_start(run: Run) -> Ending | None:
    """The end of a launch that takes no step, because of where it begins or because it is asked to stop by now; else None."""
    step = run.progress.step
    found = all_gather(first_not_finite(run.bare_model.named_parameters()))  # each rank may hold other numbers
    if tensor := next(filter(None, found), None):
        where = f"{tensor} is not finite at step {step}, where this launch begins"
        return Ending(Outcome.DIVERGED, f"{where}; go back with resume_from_checkpoint=STEP")
    if step >= run.config.max_steps:
        return Ending(Outcome.FINISHED, f"all {run.config.max_steps} steps were taken before")
    run.requests.look(step)
    if run.consensus.votes_to_stop(run.requests.stop_vote) > 0:
        return Ending(Outcome.INTERRUPTED, run.requests.stop_reason or ANOTHER_ASKED)
    return None


def judge_step(run: Run, results: Sequence[StepResult]) -> Ending | None:
    """The end where the step just taken is the last; None while there is more to do."""
    for result in results:
        run.spikes.take(result)
        if (skipped := is_skipped(run, result)) or run.spikes.is_told(result):
            run.recheck.note(result, skipped, lambda position: run.loader.sequences_of(position).tolist())
        if reason := run.guard.judge(result.step, result.loss, result.grad_norm):
            if run.guard.is_lost or not run.precision.give_up_fp8(result.step, reason):
                return Ending(Outcome.DIVERGED, reason)
            run.guard.start_over()  # skipped updates have left the weights as they were, and bf16 may do what fp8 could not
    if ending := judge_digests(run):
        return ending
    if run.progress.step >= run.config.max_steps:
        return Ending(Outcome.FINISHED, f"all {run.config.max_steps} steps were taken")
    if any(result.stop_votes for result in results):
        return Ending(Outcome.INTERRUPTED, run.requests.stop_reason or ANOTHER_ASKED)
    return None


def is_skipped(run: Run, result: StepResult) -> bool:
    """Whether a step's update was left out for its numbers; not where fp16's scaler looks for its scale by overflows."""
    if result.verdict == Verdict.NOT_FINITE:
        return run.accelerator.scaler is None and not math.isfinite(result.grad_norm)
    return run.spikes.is_skipped(result)


def judge_end(run: Run, ending: Ending) -> Ending:
    """The end once the last step is evaluated: a run that has taken all its steps and ends in doubt is diverged, not finished."""
    if ending.outcome != Outcome.FINISHED:
        return ending
    step, skipped = run.progress.step, run.guard.num_last_skipped
    if skipped >= SKIPS_IN_DOUBT:
        words = f"the updates of the last {skipped} steps up to {step} were skipped: their gradients were not finite"
        return Ending(Outcome.DIVERGED, words)
    if run.eval_schedule.is_not_finite_at(step):
        return Ending(Outcome.DIVERGED, f"the validation loss of the last step, {step}, is not finite")
    if skipped:
        words = f"of the last {skipped} the update was skipped: the gradient was not finite"
        return Ending(Outcome.FINISHED, f"{ending.reason}; {words}")
    return ending


def reason_to_save(
    run: Run, ending: Ending | None, is_best: bool, request: SaveRequest, *, is_asked: bool = False
) -> str | None:
    """Why this step gets a checkpoint: its run ends well or is interrupted, or it is due; None for no checkpoint.

    Weights in doubt (a skipped update, a validation loss that is not finite) are not saved, lest they take a good checkpoint's place.
    Only the last step of a finished run is, since it is what the run was for: one update in doubt does not spoil it, see `judge_end`.

    is_asked  whether somebody has asked for a checkpoint of this moment
    """
    if ending and ending.outcome == Outcome.FINISHED:
        return "final"
    in_doubt = run.guard.in_doubt or run.eval_schedule.is_not_finite_at(run.progress.step)
    if in_doubt or (ending and ending.outcome == Outcome.DIVERGED):
        return None
    if ending:
        return "interrupt"
    best = "best" if is_best and run.config.checkpoint.keep_best else None
    return run.checkpointer.due() or best or (ASKED if is_asked else SAVED_FOR.get(request))
