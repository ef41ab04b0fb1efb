"""One launch of a run, from its config to its outcome.json, and what a finished run leaves: a sample of text and the exported model."""

import logging
import os
import time
from pathlib import Path

from trainer.config.folders import checkpoints_folder, hold, run_folder
from trainer.config.schema import Config
from trainer.errors import TrainerError
from trainer.evaluation.generate import generate
from trainer.export import export_checkpoint
from trainer.launch import finish_processes
from trainer.loop import Outcome, train
from trainer.metrics.outcome import EXIT_CODES, read_outcome, write_outcome
from trainer.run import Run, build_run
from trainer.safety.stop import StopRequest

log = logging.getLogger(__name__)

EXPORTED = "exported"


def run_session(config: Config) -> int:
    """Trains until the run is finished or stopped; returns the exit code, the same that outcome.json states.

    Whatever happens, outcome.json says it: `refused` before the first step, `failed` after it, each with its reason.
    """
    folder, is_main = run_folder(config), os.environ.get("RANK", "0") == "0"
    run: Run | None = None
    held = hold(folder) if is_main else None
    try:
        if is_main:
            _note(folder, "running", 0, "started")
        with StopRequest() as stop:
            run = build_run(config, stop)
            outcome = train(run)
            run.reporter.close()
            conclude(run, outcome)
            finish_processes(run.accelerator)
        return EXIT_CODES[outcome.kind]
    except TrainerError as error:
        if is_main:
            begun = run is not None
            _note(folder, "failed" if begun else "refused", run.progress.step if begun else 0, str(error))
        else:
            time.sleep(3)  # the same words come from rank 0, and the launcher ends this rank before it repeats them
        raise
    except BaseException as error:
        if is_main:
            _note(folder, "failed", run.progress.step if run else 0, f"{type(error).__name__}: {error}")
        raise
    finally:
        if held is not None:
            held.close()


def _note(folder: Path, outcome: str, step: int, reason: str) -> None:
    """Writes outcome.json, keeping what an earlier finished launch left beside it."""
    before = read_outcome(folder) or {}
    kept = {key: before[key] for key in ("sample", "exported", "loss", "val_loss") if key in before}
    write_outcome(folder, outcome, step=step or before.get("step", 0), reason=reason, **kept, pid=os.getpid())


def conclude(run: Run, outcome: Outcome) -> None:
    """Writes outcome.json; a finished run is exported, with a sample of text. Called on every rank; rank 0 works, the others wait."""
    if run.accelerator.is_main_process:
        before = read_outcome(run.folder) or {}
        facts = {key: before[key] for key in ("sample", "exported", "loss") if key in before}
        if outcome.kind == "finished" and (run.reporter.known or "exported" not in before):
            facts["sample"] = sample(run)
            facts["exported"] = str(export_checkpoint(_final_checkpoint(run), run.folder / EXPORTED, replace=True))
        if run.reporter.known:
            facts["loss"] = run.reporter.known.loss
        if run.reporter.verdict:
            facts["resume"] = run.reporter.verdict
        facts["val_loss"] = run.evaluator.last_loss
        write_outcome(run.folder, outcome.kind, step=run.progress.step, reason=outcome.reason, **facts)
        log.info("%s at step %d: %s", outcome.kind, run.progress.step, outcome.reason)


def sample(run: Run) -> str | None:
    """Text that the model continues from the recipe's prompt, the same for the same weights; None without a tokenizer."""
    tokenizer, wanted = run.corpus.tokenizer, run.config.evaluation
    if tokenizer is None or not wanted.sample_tokens:
        return None
    prompt = [tokenizer.eot_id, *tokenizer.encode(wanted.prompt)]
    ids = generate(
        run.bare_model, prompt, max_new_tokens=wanted.sample_tokens, temperature=0.8, top_k=50, top_p=1.0, seed=run.config.seed,
        vocab_size=run.corpus.vocab_size,
    )  # fmt: skip
    return wanted.prompt + tokenizer.decode([token for token in ids if token != tokenizer.eot_id])


def _final_checkpoint(run: Run) -> Path:
    return checkpoints_folder(run.config) / f"step-{run.progress.step:08d}"
