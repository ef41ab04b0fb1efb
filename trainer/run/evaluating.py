"""How a run evaluates: its validation loss, its samples, its tasks."""

import logging
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from trainer import files
from trainer.collectives import main_process_first
from trainer.config.schema import Config
from trainer.data.corpus import Corpus
from trainer.data.loader import validation_batches
from trainer.errors import ConfigError
from trainer.evaluation.generate import Limits
from trainer.evaluation.loss import ValidationLoss, validation_loss
from trainer.evaluation.samples import Sample, prompts_of, take_samples
from trainer.evaluation.task_evaluator import TaskEvaluator
from trainer.evaluation.tasks import open_tasks
from trainer.model.scores import token_scores
from trainer.parallel import Parallel

log = logging.getLogger(__name__)


def build_validation(
    config: Config, corpus: Corpus, accelerator: Accelerator, model: torch.nn.Module
) -> Callable[[], ValidationLoss] | None:
    """What takes the loss on held-out text, the same on every rank; None without such text. `model` as it is trained, unwrapped."""
    held_out = corpus.validation
    if held_out is None:
        log.info("no validation data: there will be no validation loss, and no best checkpoint")
        return None
    wanted, there = config.evaluation.num_sequences, held_out.num_sequences
    if (wanted or 0) > there:
        log.warning(f"evaluation.num_sequences is {wanted}, and {there} sequences are held out: all of them are read")
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        micro_batches = validation_batches(
            held_out, num_sequences=wanted, micro_batch=config.micro_batch, device=accelerator.device, **place
        )
        return ((batch.inputs, batch.labels) for batch in micro_batches)

    return lambda: validation_loss(model, batches(), lambda total: accelerator.reduce(total, reduction="sum"))


def samples_of(config: Config, corpus: Corpus, parallel: Parallel, model: torch.nn.Module) -> list[Sample]:
    """Texts that continue the recipe's prompts, the same for the same weights; none where none is wanted or can be."""
    prompts, tokenizer = prompts_of(config.evaluation), corpus.tokenizer
    if not prompts or tokenizer is None:
        return []
    limits = Limits(
        max_new_tokens=config.evaluation.sample_tokens,
        sequence_length=config.sequence_length,
        vocab_size=corpus.vocab_size,
        eot_id=tokenizer.eot_id,
    )
    with parallel.uncompiled():
        return take_samples(model, prompts, tokenizer, limits, seed=config.seed, agree_on=parallel.agree_on)


def build_task_evaluator(
    config: Config, corpus: Corpus, accelerator: Accelerator, parallel: Parallel, model: torch.nn.Module
) -> TaskEvaluator:
    """The tasks of the recipe, opened and read as tokens."""
    wanted = config.evaluation
    if wanted.tasks and corpus.validation is None:
        raise ConfigError(
            "evaluation.tasks needs held-out data: tasks are evaluated with the validation loss; set evaluation.tasks=[]"
        )
    tasks = main_process_first(lambda: open_tasks(wanted.tasks, wanted.task_items, files.project_folder()))
    return TaskEvaluator(tasks, model, token_scores, corpus.tokenizer, accelerator, parallel)
