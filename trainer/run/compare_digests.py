"""Compares over the ranks, every `safety.digest_every_steps` and after the last one, what they hold alike, and says which of them differs."""

import logging

from trainer.ending.outcomes import Ending, Outcome
from trainer.journal import Journal
from trainer.run.build import Run
from trainer.safety.digests import digest_of, ranks_that_differ, replicated_tensors

log = logging.getLogger(__name__)


def begin_digests(run: Run, resumed_step: int | None) -> None:
    """Where it begins all ranks have read the same files, so that they agree; says once where nothing can be compared."""
    every = run.config.safety.digest_every_steps
    is_replicated = run.accelerator.num_processes > 1 and not run.parallel.is_sharded
    run.rollbacks.agreed = (resumed_step or 0) if every and is_replicated else None
    if every and run.parallel.is_sharded:
        log.info(
            "weights are not compared over processes (safety.digest_every_steps): each holds a part of its own, so nothing is there twice"
        )
        return
    if every and run.accelerator.num_processes == 1:
        log.info(
            "weights are not compared over processes (safety.digest_every_steps): there is one, so nothing is there twice"
        )


def judge_digests(run: Run) -> Ending | None:
    """The end where the ranks no longer hold the same weights and moments after this step; called on every rank."""
    step = run.progress.step
    is_last = step >= run.config.max_steps  # what the run was for is compared in any case
    if run.rollbacks.agreed is None or (step % run.config.safety.digest_every_steps and not is_last):
        return None
    mine = digest_of(replicated_tensors(run.bare_model, run.optimizer), run.accelerator.device)
    digests = run.accelerator.gather(mine.reshape(1)).tolist()
    ranks = ranks_that_differ(digests)
    if not ranks:
        run.rollbacks.agreed = step
        return None
    run.rollbacks.is_split = True
    if run.accelerator.is_main_process:
        Journal(run.folder).write("digest_differs", step=step, ranks=ranks, agreed=run.rollbacks.agreed)
    named = " and ".join(map(str, ranks))
    who = f"ranks {named} differ" if len(ranks) > 1 else f"rank {named} differs from the others"
    words = f"{who} in weights or moments at step {step}, and all agreed at step {run.rollbacks.agreed}: a chip or its memory is broken"
    log.error("%s; have the devices tested", words)
    return Ending(Outcome.DIVERGED, words)
