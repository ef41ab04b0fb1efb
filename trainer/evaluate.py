"""`trainer eval`: tasks put to the model of a checkpoint, by one process or by all that `accelerate launch` started."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import files, launch
from trainer.checkpoint.resume import Located, locate
from trainer.config.folders import find_checkpoints, folder_of_run, run_folder
from trainer.config.load import load_resolved
from trainer.data.assets import twelfth_night
from trainer.data.kept_rows import kept_rows
from trainer.determinism import missing_form_explained
from trainer.errors import ConfigError, TrainerError
from trainer.evaluation.accuracy import TaskResult
from trainer.evaluation.exam import Exam
from trainer.evaluation.tasks import open_tasks
from trainer.export import EVALUATIONS, tokenizer_of
from trainer.model.load import load_model
from trainer.model.scores import token_scores
from trainer.precision.decide import decide
from trainer.precision.probe import look
from trainer.text import table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint came to."""

    located: Located
    precision: str
    results: list[TaskResult]
    is_main: bool
    """Whether this process is the one that speaks and writes."""

    def records(self) -> list[dict[str, object]]:
        """One record a task, plain JSON: what is not finite is None."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {**self.located.facts(), "tokens": self.located.manifest.tokens}
        return [{**facts, **_finite(asdict(result)), "precision": self.precision, "time": when} for result in self.results]

    def text(self) -> str:
        """A table, under a line that says of what."""
        name, over = self.located.path.parent.name, self.located.passed_over
        precision = "fp32" if self.precision == "no" else self.precision
        broken = [
            f"{result.task}: the scores of {result.num_not_finite} of {result.num_items} items are not finite: the weights are damaged or "
            "diverged; take an older checkpoint"
            for result in self.results
            if result.num_not_finite
        ]
        passed_over = [f"{other} is passed over: {why}" for other, why in over.items()]
        return "\n".join([f"{name}, step {self.located.manifest.step}, {precision}", *passed_over, results_table(self.results), *broken])


def results_table(results: Sequence[TaskResult]) -> str:
    """One line a task: accuracies with their standard errors, and what guessing gives."""
    rows_ = [("task", "items", "acc", "+-", "acc_norm", "+-", "chance", "perplexity")]
    for result in results:
        numbers = (result.acc, result.acc_stderr, result.acc_norm, result.acc_norm_stderr, result.chance)
        shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
        perplexity = "-" if result.perplexity is None else f"{result.perplexity:.4g}"
        rows_.append((result.task, str(result.num_items), *shown, perplexity))
    return table(rows_)


def evaluate(
    run: str, checkpoint: str, wanted: Sequence[str], limit: int | None, progress: Callable[[str, float], None]
) -> Evaluation:
    """Puts tasks to a checkpoint of a run, and adds what came of it to the run's evaluations.jsonl.

    run, checkpoint  as a person names them
    wanted           names of tasks, and paths of files from the current folder
    limit            items of each task, from the front; None: all
    progress         hears a task's name and how much of it is done; called on the main process only
    raises           TrainerError when the model has no tokenizer, and whatever is wrong with run, checkpoint or tasks
    """
    if not wanted:
        raise ConfigError("--tasks names no task; give shakespeare_lines, or the path of a file of items")
    place = launch.asked()
    try:
        with missing_form_explained("ACCELERATE_USE_CPU=true in the environment evaluates on the CPU"):
            return _evaluate(place, locate(find_checkpoints(run), checkpoint), wanted, limit, progress)
    except TrainerError as error:
        error.was_said = not place.is_main  # the same paragraph from every rank would be said once
        raise


def _evaluate(
    place: launch.Asked, located: Located, wanted: Sequence[str], limit: int | None, progress: Callable[[str, float], None]
) -> Evaluation:
    checkpoint, manifest = located.path, located.manifest
    tokenizer = tokenizer_of(manifest)
    if tokenizer is None:
        raise TrainerError(
            f"{checkpoint} was trained without a tokenizer, so it cannot read the text of a task; name one with data.tokenizer in the recipe "
            "of a new run"
        )
    device = launch.meet(place, deterministic=True)
    asked = "bf16" if place.precision == "fp8" else place.precision  # as in the loop: what is not trained does not run in fp8
    precision = decide(asked, look(device.type, None)).mode
    folder = folder_of_run(checkpoint) or run_folder(load_resolved(checkpoint / "config.yaml"))
    accelerator = launch.start(
        place, precision=precision, deterministic=True, seed=0, trackers=[], runs_folder=folder.parent
    )
    tasks = launch.first_on_main(
        accelerator, lambda: open_tasks(wanted, limit, Path.cwd(), rows=kept_rows, scenes=twelfth_night)
    )
    weights = checkpoint / "model.safetensors"
    model = load_model(manifest.model, weights, vocab_size=manifest.vocab_size, device=accelerator.device)
    results = Exam(tasks, model, token_scores, tokenizer, accelerator).results(progress if place.is_main else _in_silence)
    evaluation = Evaluation(located, precision, results, place.is_main)
    if place.is_main and folder.is_dir():  # a checkpoint that was copied here has no run
        _write_down(evaluation, folder / EVALUATIONS)
    launch.finish_processes(accelerator, model)
    return evaluation


def _write_down(evaluation: Evaluation, path: Path) -> None:
    """Adds the records to a file; where that cannot be written, the numbers that took so long are shown all the same."""
    try:
        files.append_lines(path, map(json.dumps, evaluation.records()))
    except OSError as error:
        log.warning("%s cannot be written (%s), so what follows stands nowhere else", path, error.strerror)


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in facts.items()}


def _in_silence(task: str, fraction: float) -> None:
    """What the other processes tell of their progress."""
