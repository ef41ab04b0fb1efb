"""The training loop: the order of a step is its meaning, so here it stands in the order of the lines."""

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from trainer.checkpoint.format.tensor_names import first_not_finite
from trainer.checkpoint.save.checkpointer import GIVE_UP, NOTHING, SNAPSHOT, WRITE
from trainer.data.loader import Batch
from trainer.evaluation.samples import markdown, samples_due
from trainer.metrics.reporter import Known
from trainer.optim.build import step_if_finite
from trainer.optim.groups import set_learning_rate
from trainer.run.build import Run
from trainer.safety.guard import SKIPS_IN_DOUBT
from trainer.text import shortened

log = logging.getLogger(__name__)

WISHED = {WRITE: "budget", SNAPSHOT: "snapshot"}
"""Why a save is made that the clock has wished for."""

ANOTHER_ASKED = "another process was asked to stop"


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: `finished`, `interrupted` or `diverged`, and why."""

    kind: str
    reason: str


def train(run: Run) -> Outcome:
    """Takes optimizer steps until the budget is spent, the loss is beyond saving, or someone asks us to stop.

    A finished or interrupted run ends with a checkpoint of its last step.
    """
    if tensor := first_not_finite(run.bare_model.named_parameters()):
        step = run.progress.step
        return Outcome(
            "diverged",
            f"{tensor} is not finite at step {step}, where this launch begins; go back with resume_from_checkpoint=STEP",
        )
    if run.progress.step >= run.config.max_steps:
        run.stopwatch.start()
        if run.evaluator.due(run.progress.step):  # it was interrupted there
            evaluate(run)
        return settle(run, Outcome("finished", f"all {run.config.max_steps} steps were taken before"))
    if run.accelerator.reduce(torch.tensor(run.stop.vote, device=run.accelerator.device), reduction="sum") > 0:
        return Outcome("interrupted", run.stop.reason or ANOTHER_ASKED)
    run.profiler.reached(run.progress.step)
    run.stopwatch.start()
    for batch in run.loader.batches(run.progress.sequences):
        run.stopwatch.lap("data")
        lr = set_learning_rate(run.optimizer, run.schedule(run.progress.step))
        run.precision.begin(run.progress.step + 1)
        loss = accumulate_gradients(run, batch)
        run.stopwatch.lap("forward_backward")
        grad_norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.optimizer.max_grad_norm)
        run.checkpointer.before_update()  # a snapshot may still be reading the weights
        with run.probes.around_update(run.progress.step + 1):
            step_if_finite(run.optimizer, grad_norm)
        run.optimizer.zero_grad()
        run.stopwatch.lap("optimizer")

        run.state.advance(batch.num_sequences, batch.num_tokens)  # from here on this batch is in the past
        facts = run.precision.end(run.progress.step, batch.micro_batches[0].inputs, batch.micro_batches[0].labels)
        known = report(run, batch, lr, loss, grad_norm, facts)
        outcome = decide(run, known)
        run.stopwatch.lap("report")

        is_best = evaluate(run) if run.evaluator.due(run.progress.step) else False
        outcome = settle(run, outcome)
        if sample_is_due(run):
            sample(run)
        outcome = save(run, outcome, is_best, wish=max((numbers.save_wish for numbers in known), default=NOTHING))
        profile(run)
        if outcome:
            return outcome
    raise AssertionError("the loader never ends")


def accumulate_gradients(run: Run, batch: Batch) -> torch.Tensor:
    """Forward and backward over this rank's share of one global batch; returns its mean loss, still on the device.

    Gradients are summed over ranks once, on the last micro-batch.
    """
    total = torch.zeros((), device=run.accelerator.device)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        is_last = number == len(batch.micro_batches)
        run.precision.micro_batch(number)
        with nullcontext() if is_last else run.accelerator.no_sync(run.model):
            loss = run.model(micro_batch.inputs, labels=micro_batch.labels) / len(batch.micro_batches)
            run.accelerator.backward(loss)
        total += loss.detach()
    return total


def report(
    run: Run, batch: Batch, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor, facts: dict[str, float]
) -> list[Known]:
    """Hands the step's numbers over, `facts` by tag; returns those that have reached the host, the same on every rank.

    One reduction carries the loss, the ranks' votes to stop, and rank 0's wish for a save.
    """
    accelerator, progress = run.accelerator, run.progress
    vote, wish = torch.full_like(loss, run.stop.vote), torch.full_like(loss, run.checkpointer.wish())
    mean = accelerator.reduce(torch.stack([loss / accelerator.num_processes, vote, wish]), reduction="sum")
    numbers = torch.stack([mean[0], grad_norm.to(mean.dtype), mean[1], mean[2]])
    known = run.reporter.step(
        step=progress.step,
        tokens=progress.tokens,
        step_tokens=batch.num_tokens,
        lr=lr,
        epoch=run.loader.epoch_at(progress.sequences),
        data_digest=batch.digest,
        numbers=numbers,
        facts=facts,
        laps=run.stopwatch.end_step(),
        reading=run.probes.take(),
    )
    # Before an evaluation, a save or the end nothing may be on its way.
    needed_now = (
        run.evaluator.due(progress.step)
        or sample_is_due(run)
        or run.checkpointer.due()
        or progress.step >= run.config.max_steps
    )
    needed_now = (
        needed_now
        or run.profiler.is_written_after(progress.step)
        or any(numbers.stop_votes or numbers.save_wish for numbers in known)
    )
    known = known + run.reporter.flush() if needed_now else known
    if known and (seconds := run.reporter.step_seconds) is not None:
        run.checkpointer.stepped(seconds)
    return known


def decide(run: Run, known: list[Known]) -> Outcome | None:
    """Whether this step is the last, by numbers that every rank has alike; None while there is more to do."""
    for numbers in known:
        if reason := run.guard.judge(numbers.step, numbers.loss, numbers.grad_norm):
            if not run.precision.give_up_fp8(numbers.step, reason):
                return Outcome("diverged", reason)
            run.guard.start_over()  # what was skipped has left the weights as they were, and bf16 may do what fp8 could not
    if run.progress.step >= run.config.max_steps:
        return Outcome("finished", f"all {run.config.max_steps} steps were taken")
    if any(numbers.stop_votes for numbers in known):
        return Outcome("interrupted", run.stop.reason or ANOTHER_ASKED)
    return None


def settle(run: Run, outcome: Outcome | None) -> Outcome | None:
    """The outcome once the last step is evaluated: a run that took all its steps and ends in doubt has not finished but diverged."""
    if outcome is None or outcome.kind != "finished":
        return outcome
    step, skipped = run.progress.step, run.guard.num_last_skipped
    if skipped >= SKIPS_IN_DOUBT:
        return Outcome(
            "diverged",
            f"the updates of the last {skipped} steps up to {step} were skipped: their gradients were not finite",
        )
    if run.evaluator.last_step == step and run.evaluator.last_loss is None:
        return Outcome("diverged", f"the validation loss of the last step, {step}, is not finite")
    if skipped:
        return Outcome(
            "finished", f"{outcome.reason}; of the last {skipped} the update was skipped: the gradient was not finite"
        )
    return outcome


def evaluate(run: Run) -> bool:
    """Takes the validation loss, asks the tasks, and writes both down; returns whether the loss is the lowest so far."""
    with run.reporter.pause("evaluating"):
        started = time.perf_counter()
        result = run.validate()
        step, facts = run.progress.step, {}
        if num_bytes := run.corpus.validation_bytes(run.config.evaluation.num_sequences):
            facts["bits_per_byte"] = result.bits_per_byte(num_bytes)
        if run.evaluator.tasks_due(step):
            facts |= run.exam.facts()
        seconds = time.perf_counter() - started
        run.reporter.evaluation(step, run.progress.tokens, result.loss, facts, seconds)
    run.stopwatch.lap("evaluation")
    return run.evaluator.record(step, result.loss)


def sample_is_due(run: Run) -> bool:
    """Whether the model is to write something at this step; the same on every rank, for all read their numbers before it."""
    wanted, step = run.config.evaluation, run.progress.step
    is_evaluated = run.evaluator.due(step) or run.evaluator.last_step == step
    return samples_due(wanted, step, run.config.max_steps, is_evaluated)


def sample(run: Run) -> None:
    """Lets the model write on rank 0, and shows what: in TensorBoard, and its beginning in the log. The others go on to the next step."""
    if not run.accelerator.is_main_process:
        return
    step = run.progress.step

    def write() -> None:
        samples = run.samples()
        if samples:
            run.reporter.text("samples", markdown(samples), step)
            log.info("step %d: it writes: %s", step, shortened(samples[-1].prompt + samples[-1].text))

    with run.reporter.pause("sampling"):
        run.reporter.may_fail("samples", write)
    run.stopwatch.lap("evaluation")


def save(run: Run, outcome: Outcome | None, is_best: bool, wish: float) -> Outcome | None:
    """Saves when there is a reason to: the step's own, or what rank 0's clock has wished for. Returns the outcome.

    It is another when a finished run's last weights or moments are not finite: there is no checkpoint of them.
    """
    if wish:
        run.checkpointer.heard()
    if wish >= GIVE_UP and not outcome:
        run.checkpointer.give_up()
    step = run.progress.step
    in_doubt = run.guard.in_doubt or (run.evaluator.last_step == step and run.evaluator.last_loss is None)
    best = "best" if is_best and run.config.checkpoint.keep_best else None
    reason = reason_to_save(outcome, run.checkpointer.due() or best or WISHED.get(wish), in_doubt)
    if not reason:
        return outcome
    with run.reporter.pause("saving"):
        known = run.reporter.known
        tensor = run.checkpointer.save(reason, loss=known.loss if known else None, val_loss=run.evaluator.loss_at(step))
    run.stopwatch.lap("save")
    return (
        Outcome("diverged", f"{tensor} is not finite after the last step, {step}")
        if reason == "final" and tensor
        else outcome
    )


def profile(run: Run) -> None:
    """Begins, continues or writes what the recipe wants recorded; the time of writing is not the next step's."""
    if run.profiler.is_written_after(run.progress.step):
        with run.reporter.pause("profiling"):
            run.profiler.reached(run.progress.step)
        run.stopwatch.lap("profile")
    else:
        run.profiler.reached(run.progress.step)


def reason_to_save(outcome: Outcome | None, due: str | None, in_doubt: bool) -> str | None:
    """Why this step gets a checkpoint: its run ends well or is interrupted, it is due; None for no checkpoint.

    Weights in doubt (a skipped step, a validation loss that is no number) are not saved, lest they push a good checkpoint out;
    only the last step of a finished run is, since it is what the run was for: one update in doubt does not spoil it, see `settle`.
    """
    if outcome and outcome.kind == "finished":
        return "final"
    if in_doubt or (outcome and outcome.kind == "diverged"):
        return None
    return "interrupt" if outcome else due
