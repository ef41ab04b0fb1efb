"""`trainer eval`: the loss on held-out text and tasks, of the model of a checkpoint, by one process or by all that `accelerate launch` started."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainer import files
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.resume.select import Located, locate
from trainer.collectives import main_process_first
from trainer.config.folders import find_checkpoints, folder_of_run, run_folder
from trainer.config.load import load_resolved
from trainer.config.schema import Config
from trainer.data.corpus import held_out_shards, label_bytes, trained_on_too
from trainer.data.loader import validation_batches
from trainer.data.shards import TokenDataset, resolve_shards
from trainer.data.tokenizer import Tokenizer
from trainer.determinism import missing_form_explained
from trainer.errors import ConfigError, TrainerError
from trainer.evaluation.accuracy import TaskResult
from trainer.evaluation.loss import validation_loss
from trainer.evaluation.task_evaluator import TaskEvaluator
from trainer.evaluation.tasks import open_tasks
from trainer.export import EVALUATIONS, tokenizer_of
from trainer.launch.accelerator import make_accelerator
from trainer.launch.environment import LaunchEnv
from trainer.launch.process_group import init_process_group
from trainer.model.load import load_model
from trainer.model.scores import token_scores
from trainer.parallel import parallel_of
from trainer.plugins import import_plugins
from trainer.precision.decide import decide
from trainer.precision.probe import probe_device
from trainer.run.identity import digest
from trainer.text import table

log = logging.getLogger(__name__)

LOSS = "validation_loss"
"""What a record of the loss has as its task."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a checkpoint."""

    tasks: Sequence[str] | None = None
    """Names of tasks, and paths of files from the current folder; None: the loss on held-out text."""
    data: str | None = None
    """Whose loss is taken too, or instead: a folder of `trainer prepare`, or shards, from the current folder; None: the run's own."""
    limit: int | None = None
    """Items of each task, and sequences of held-out text, from the front; None: all, of the run's own text those that the run reads."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss on held-out text."""

    data: str
    loss: float
    """Nats per token."""
    perplexity: float
    bits_per_byte: float | None
    """None without a tokenizer: how many bytes per token stands for is not known then."""
    num_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint came to."""

    located: Located
    precision: str
    results: list[TaskResult]
    is_main: bool
    """Whether this process is the one that speaks and writes."""
    loss: Loss | None = None
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    """When it was done: the same in the run's file and in what is printed."""

    def records(self) -> list[dict[str, object]]:
        """One record for the loss and one a task, plain JSON: what is not finite is None."""
        facts = {**self.located.facts(), "tokens": self.located.manifest.tokens}
        found = [{"task": LOSS, **asdict(self.loss)}] if self.loss else []
        found += [asdict(result) for result in self.results]
        return [{**facts, **_finite(one), "precision": self.precision, "time": self.when} for one in found]

    def text(self) -> str:
        """A table, under a line that says of what."""
        name, over = self.located.path.parent.name, self.located.passed_over
        precision = "fp32" if self.precision == "no" else self.precision
        remedy = "the weights are damaged or diverged; take an older checkpoint"
        broken = [
            f"{result.task}: the scores of {result.num_not_finite} of {result.num_items} items are not finite: {remedy}"
            for result in self.results
            if result.num_not_finite
        ]
        if self.loss and not math.isfinite(self.loss.loss):
            broken.append(f"the loss is {self.loss.loss}: {remedy}")
        tables = [loss_table(self.loss)] if self.loss else []
        tables += [results_table(self.results)] if self.results else []
        passed_over = [f"{other} is passed over: {why}" for other, why in over.items()]
        return "\n".join([f"{name}, step {self.located.manifest.step}, {precision}", *passed_over, *tables, *broken])


def loss_table(loss: Loss) -> str:
    """The loss in its three units."""
    bits = "-" if loss.bits_per_byte is None else f"{loss.bits_per_byte:.4f}"
    shown = (loss.data, f"{loss.num_tokens}", f"{loss.loss:.4f}", f"{loss.perplexity:.4g}", bits)
    return table([("held-out text", "tokens", "loss", "perplexity", "bits per byte"), shown])


def results_table(results: Sequence[TaskResult]) -> str:
    """One line a task: accuracies with their standard errors, and what guessing gives."""
    rows_: list[tuple[str, ...]] = [("task", "items", "acc", "+-", "acc_norm", "+-", "chance", "perplexity")]
    for result in results:
        numbers = (result.acc, result.acc_stderr, result.acc_norm, result.acc_norm_stderr, result.chance)
        shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
        perplexity = "-" if result.perplexity is None else f"{result.perplexity:.4g}"
        rows_.append((result.task, str(result.num_items), *shown, perplexity))
    return table(rows_)


def evaluate(run: str, checkpoint: str, wanted: Asked, progress: Callable[[str, float], None]) -> Evaluation:
    """Takes the loss and puts tasks to a checkpoint of a run, and adds what came of it to the run's evaluations.jsonl.

    run, checkpoint  as a person names them
    progress         hears a task's name and how much of it is done; called on the main process only
    raises           TrainerError when there is no held-out text, or no tokenizer to read a task, and whatever is wrong with run,
                     checkpoint, data or tasks
    """
    if wanted.tasks is not None and not wanted.tasks:
        raise ConfigError(
            "--tasks names no task; give shakespeare_lines, or the path of a file of items, or leave it out for the validation loss"
        )
    place = LaunchEnv.from_env()
    try:
        with missing_form_explained("ACCELERATE_USE_CPU=true in the environment evaluates on the CPU"):
            return _evaluate(place, locate(find_checkpoints(run), checkpoint), wanted, progress)
    except TrainerError as error:
        error.was_said = not place.is_main  # the same paragraph from every rank would be printed once
        raise


def _evaluate(place: LaunchEnv, located: Located, wanted: Asked, progress: Callable[[str, float], None]) -> Evaluation:
    checkpoint, manifest = located.path, located.manifest
    tokenizer = tokenizer_of(checkpoint, manifest)
    if tokenizer is None and wanted.tasks:
        raise TrainerError(
            f"{checkpoint} was trained without a tokenizer, so it cannot read the text of a task; name one with data.tokenizer in the recipe "
            "of a new run"
        )
    device = init_process_group(place, deterministic=True)
    # As in the loop: what is not trained does not run in fp8.
    asked = "bf16" if place.precision == "fp8" else place.precision
    precision = decide(asked, probe_device(device.type, None)).mode
    config = load_resolved(checkpoint / "config.yaml")
    folder = folder_of_run(checkpoint) or run_folder(config)
    accelerator = make_accelerator(
        place, precision=precision, deterministic=True, seed=0, trackers=[], runs_folder=folder.parent
    )
    is_loss_wanted = wanted.tasks is None or wanted.data is not None
    data = main_process_first(lambda: held_out(config, manifest, wanted.data)) if is_loss_wanted else None
    tasks = main_process_first(lambda: open_tasks(wanted.tasks or (), wanted.limit, Path.cwd()))
    import_plugins(config.plugins)
    model = load_model(
        manifest.model, checkpoint / "model.safetensors", vocab_size=manifest.vocab_size, device=accelerator.device
    )
    report = progress if place.is_main else lambda task, fraction: None
    loss = None
    if data is not None:
        num_sequences = wanted.limit or (None if wanted.data else config.evaluation.num_sequences)
        is_runs_own = wanted.data is None and num_sequences == config.evaluation.num_sequences
        if place.is_main and is_runs_own and manifest.validation != digest((data.fingerprint, num_sequences)):
            what = "the run's held-out text is not what it was when this checkpoint was made"
            log.warning("%s: its validation loss does not compare", what)
        loss = _loss(
            accelerator, model, data, wanted.data or _name(config), tokenizer, num_sequences, config.micro_batch, report
        )
    results = TaskEvaluator(tasks, model, token_scores, tokenizer, accelerator).results(report)
    evaluation = Evaluation(located, precision, results, place.is_main, loss)
    if place.is_main and folder.is_dir():  # a checkpoint that was copied here has no run
        _write_down(evaluation, folder / EVALUATIONS)
    parallel_of(accelerator).end(model)
    return evaluation


def held_out(config: Config, manifest: Manifest, data: str | None) -> TokenDataset:
    """The held-out text that is asked for, cut as the model was trained; a warning where that is text which it was trained on."""
    trained_with, length, own = manifest.identity.get("tokenizer"), manifest.identity["sequence_length"], config.data
    if data is not None:
        paths = held_out_shards(data, Path.cwd(), trained_with)
    elif own.corpus:
        paths = held_out_shards(own.corpus, files.project_folder(), trained_with, whole_if_none=False)
    elif own.validation:
        base = files.project_folder()
        paths = resolve_shards(own.validation, base, "validation", skip_unreadable=own.skip_unreadable)
    else:
        raise ConfigError(
            f"{config.name} has no held-out text of its own; name some with --data FOLDER, or what to ask with --tasks"
        )
    found = TokenDataset(paths, sequence_length=length, vocab_size=manifest.vocab_size, dtype=own.dtype)
    for words in trained_on_too(own, length, found) if data is not None else ():
        log.warning(words)
    return found


def _name(config: Config) -> str:
    """What the run's own held-out text is called in a table."""
    return config.data.corpus or ", ".join(config.data.validation)


def _loss(
    accelerator: Accelerator,
    model: torch.nn.Module,
    data: TokenDataset,
    name: str,
    tokenizer: Tokenizer | None,
    num_sequences: int | None,
    micro_batch: int,
    progress: Callable[[str, float], None],
) -> Loss:
    """The mean loss on the first `num_sequences` sequences (None: all), as a run takes it; the same on every rank."""
    total = min(num_sequences or data.num_sequences, data.num_sequences)
    at_once = micro_batch * accelerator.num_processes

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        micro_batches = validation_batches(
            data,
            num_sequences=total,
            micro_batch=micro_batch,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            device=accelerator.device,
        )
        for number, batch in enumerate(micro_batches, start=1):
            yield batch.inputs, batch.labels
            progress(LOSS, min(1.0, number * at_once / total))

    with accelerator.autocast():
        found = validation_loss(model, batches(), lambda totals: accelerator.reduce(totals, reduction="sum"))
    bits = found.bits_per_byte(label_bytes(data, tokenizer, total)) if tokenizer else None
    perplexity = math.exp(found.loss) if found.loss < 700 else math.inf
    return Loss(data=name, loss=found.loss, perplexity=perplexity, bits_per_byte=bits, num_tokens=found.num_tokens)


def _write_down(evaluation: Evaluation, path: Path) -> None:
    """Adds the records to a file; where that cannot be written, the numbers that took so long are shown all the same."""
    try:
        files.append_lines(path, map(json.dumps, evaluation.records()))
    except OSError as error:
        log.warning("%s cannot be written (%s), so what follows stands nowhere else", path, error.strerror)


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    broken = [name for name, value in facts.items() if isinstance(value, float) and not math.isfinite(value)]
    return facts | dict.fromkeys(broken)
