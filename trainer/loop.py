"""The training loop: the order of a step is its meaning, so here it stands in the order of the lines.

A step's numbers become a StepResult, the same on every rank, which on a GPU reaches the host one step late (run/consensus.py). What the
ranks do because of it, they decide by it alone (run/verdict.py), so all do the same after the same step.
"""

import logging
import time
from contextlib import nullcontext

import torch

from trainer import beats
from trainer.data.loader import Batch
from trainer.ending.outcomes import Ending, Outcome
from trainer.evaluation.samples import SAMPLES_READ, markdown
from trainer.metrics.reporter import StepFacts
from trainer.optim.build import step_if_finite
from trainer.optim.groups import rates_by_tag, set_learning_rate
from trainer.run.build import Run
from trainer.run.consensus import LOSS
from trainer.run.verdict import is_skipped, judge_end, judge_start, judge_step, reason_to_save
from trainer.step_result import SaveRequest, StepResult
from trainer.text import shortened

log = logging.getLogger(__name__)


def train(run: Run) -> Ending:
    """Takes optimizer steps until all are taken, the run has diverged, or it is asked to stop.

    A finished or interrupted run ends with a checkpoint of its last step.
    """
    if ending := judge_start(run):
        if ending.outcome == Outcome.FINISHED and run.eval_schedule.due(run.progress.step):  # it was interrupted there
            run.stopwatch.start()
            evaluate(run)
        return judge_end(run, ending)
    run.profiler.reached(run.progress.step)
    beats.beat(run.progress.step, beats.TRAINING, on_gpu=run.accelerator.device.type == "cuda")
    run.stopwatch.start()
    for batch in run.loader.batches(run.progress.sequences):
        run.stopwatch.lap("data")
        lr = set_learning_rate(
            run.optimizer, run.schedule(run.progress.step) * run.rollbacks.lr_factor(run.progress.step + 1)
        )
        loss, grad_norm = compute_gradients(run, batch)
        run.stopwatch.lap("forward_backward")
        agreed = agree(run, batch, loss)
        judged = run.spikes.judge(agreed[LOSS], grad_norm)
        run.checkpointer.before_update()  # a snapshot may still be reading the weights
        with run.probes.around_update(run.progress.step + 1):
            step_if_finite(run.optimizer, judged.norm)
        run.optimizer.zero_grad()
        run.stopwatch.lap("optimizer")

        end = batch.first_sequence + batch.num_sequences
        run.state.advance(end - run.progress.sequences, batch.num_tokens)  # from here on this batch is in the past
        run.consensus.submit(run.progress.step, agreed, grad_norm, judged)
        facts = run.precision.end(run.progress.step, batch.micro_batches[0].inputs, batch.micro_batches[0].labels)
        results = report(run, batch, lr, {**facts, **rates_by_tag(run.optimizer)})
        beats.beat(run.progress.step, beats.TRAINING)
        ending = judge_step(run, results)
        run.stopwatch.lap("report")

        is_best = evaluate(run) if run.eval_schedule.due(run.progress.step) else False
        ending = judge_end(run, ending) if ending else None
        if run.eval_schedule.samples_due(run.progress.step):
            sample(run)
        ending = save(run, ending, is_best, results)
        profile(run)
        if ending:
            run.reporter.write(run.consensus.settle())  # of a run that has diverged the last result is not judged
            return ending
    raise AssertionError("the loader never ends")


def compute_gradients(run: Run, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of one global batch, clipped; returns this rank's mean loss, and the gradient's norm before, both still on the device.

    Where the update of the step before was skipped, its batch is computed once more first: is it the data, or a broken chip?
    """
    step = run.progress.step + 1

    def gradients(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        run.precision.begin(step)
        run.experts.begin(step)
        loss = accumulate_gradients(run, batch)
        return loss, run.parallel.clip_grad_norm(run.model.parameters(), run.config.optimizer.max_grad_norm)

    run.recheck.begin(step, batch)
    loss, grad_norm = gradients(batch)
    before = run.consensus.newest()
    if (
        before is not None
        and is_skipped(run, before)
        and run.recheck.repeat(before, run.optimizer.zero_grad, gradients)
    ):
        loss, grad_norm = gradients(batch)
    run.recheck.computed(step, loss, grad_norm)
    return loss, grad_norm


def accumulate_gradients(run: Run, batch: Batch) -> torch.Tensor:
    """Forward and backward over this rank's share of one global batch; returns its mean loss, still on the device.

    Gradients are summed over ranks once, on the last micro-batch.
    """
    total = torch.zeros((), device=run.accelerator.device)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        is_last = number == len(batch.micro_batches)
        run.precision.micro_batch(number)
        with nullcontext() if is_last else run.parallel.no_sync(run.model):
            loss = run.model(micro_batch.inputs, labels=micro_batch.labels) / len(batch.micro_batches)
            run.accelerator.backward(loss)
        total += loss.detach()
        beats.beat()
    return total


def agree(run: Run, batch: Batch, loss: torch.Tensor) -> torch.Tensor:
    """Has the ranks agree on the loss, on whether to stop, and on what to save after this step; on the device."""
    request = run.checkpointer.save_request(run.progress.tokens + batch.num_tokens)
    run.requests.look(run.progress.step + 1, run.checkpointer.save_seconds)
    votes = {"stop_vote": run.requests.stop_vote, "save_vote": run.requests.save_vote}
    return run.consensus.agree(loss, **votes, save_request=request, aux_loss=run.experts.aux_loss())


def report(run: Run, batch: Batch, lr: float, facts: dict[str, float]) -> list[StepResult]:
    """Writes down what is known of the step, `facts` by tag among it.

    Returns the results that have reached the host, the same on every rank.
    """
    step = run.progress.step
    run.reporter.step_taken(
        StepFacts(
            step=step,
            tokens=run.progress.tokens,
            step_tokens=batch.num_tokens,
            lr=lr,
            epoch=run.loader.epoch_at(run.progress.sequences),
            data_digest=batch.digest,
            measured=facts,
            times=run.stopwatch.end_step(),
            reading=run.probes.take(),
            load=run.experts.load(step),
        )
    )
    results = run.consensus.collect()
    run.reporter.write(results)
    if results and (seconds := run.reporter.step_seconds) is not None:
        run.checkpointer.stepped(seconds)
    return results


def evaluate(run: Run) -> bool:
    """Takes the validation loss, asks the tasks, and writes both down; returns whether the loss is the lowest so far."""
    assert run.validate is not None, "an evaluation is due only where text is held out"
    with run.reporter.pause("evaluating"):
        started = time.perf_counter()
        result = run.validate()
        step, facts = run.progress.step, dict[str, float]()
        if num_bytes := run.corpus.validation_bytes(run.config.evaluation.num_sequences):
            facts["bits_per_byte"] = result.bits_per_byte(num_bytes)
        if run.eval_schedule.tasks_due(step):
            facts |= run.tasks.facts()
        seconds = time.perf_counter() - started
        run.reporter.evaluation(step, run.progress.tokens, result.loss, facts, seconds)
    run.stopwatch.lap("evaluation")
    return run.eval_schedule.record(step, result.loss)


def sample(run: Run) -> None:
    """Lets the model write: into TensorBoard, and the beginning into the log. A rank that is not needed goes on to the next step."""
    if not run.parallel.runs_here(SAMPLES_READ):
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


def save(run: Run, ending: Ending | None, is_best: bool, results: list[StepResult]) -> Ending | None:
    """Saves where there is a reason to: the step's own, what rank 0's clock has requested, or that somebody asked. Returns how the run ends.

    It is another when a finished run's last weights or moments are not finite: there is no checkpoint of them.
    """
    request = max((result.save_request for result in results), default=SaveRequest.NONE)
    is_asked = any(result.save_votes for result in results)
    if request:
        run.checkpointer.acknowledge()
    if request == SaveRequest.GIVE_UP and not ending:
        run.checkpointer.give_up()
    reason = reason_to_save(run, ending, is_best, request, is_asked=is_asked)
    if not reason:
        return ending
    step, latest = run.progress.step, run.consensus.latest
    with run.reporter.pause("saving"):
        loss, val_loss = latest.loss if latest else None, run.eval_schedule.loss_at(step)
        tensor = run.checkpointer.save(reason, loss=loss, val_loss=val_loss, pinned=run.requests.pins)
    if is_asked or ending:
        run.requests.answer_saves(step, is_saved=run.checkpointer.has_saved(step))
    run.stopwatch.lap("save")
    if reason == "final" and tensor:
        return Ending(Outcome.DIVERGED, f"{tensor} is not finite after the last step, {step}")
    return ending


def profile(run: Run) -> None:
    """Begins, continues or writes what the recipe wants recorded; the time of writing is not the next step's."""
    if run.profiler.is_written_after(run.progress.step):
        with run.reporter.pause("profiling"):
            run.profiler.reached(run.progress.step)
        run.stopwatch.lap("profile")
    else:
        run.profiler.reached(run.progress.step)
