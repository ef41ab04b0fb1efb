"""The model of a run: built for its data, converted where it computes in fp8, prepared by Accelerate."""

import logging
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from trainer.collectives import all_gather, main_process_first
from trainer.config.folders import run_folder
from trainer.config.schema import Config
from trainer.data.corpus import Corpus
from trainer.evaluation.samples import check_prompts, prompts_of
from trainer.journal import Journal
from trainer.launch.compile_choice import compile_backend
from trainer.launch.environment import num_local_processes
from trainer.launch.logging_setup import warn_once_per_machine
from trainer.model.build import build_model, build_shapes
from trainer.model.flops import flops_per_token
from trainer.model.head_way import find_head_way
from trainer.model.presets import preset_fields
from trainer.model.resolve import resolve
from trainer.optim.build import build_optimizer
from trainer.optim.groups import check_groups
from trainer.optim.rules import descriptions, freeze
from trainer.parallel import Parallel
from trainer.precision.decide import Decision
from trainer.precision.fp8_model import Fp8Model
from trainer.precision.monitor import PrecisionMonitor, build_monitor
from trainer.run.initial import Initial, initial_of, read_source, structure_of
from trainer.run.memory import check_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The model and what updates it, as Accelerate gave them back."""

    model: torch.nn.Module
    """What `Accelerator.prepare` gave back: takes inputs and labels [B, T], returns the mean loss."""
    bare_model: torch.nn.Module
    """The transformers model inside, never compiled: its keys are stored, and it generates."""
    optimizer: torch.optim.Optimizer
    precision: PrecisionMonitor
    initial: Initial | None
    """Where its weights begin; None for random ones."""


def prepare(
    config: Config, accelerator: Accelerator, parallel: Parallel, decision: Decision, corpus: Corpus, accumulation: int
) -> Prepared:
    """Builds model and optimizer and lets Accelerate prepare them; raises ConfigError, OutOfMemoryError, PrecisionError.

    accumulation  micro-batches per step and rank
    """
    initial = main_process_first(lambda: initial_of(config, corpus))
    if initial is not None and initial.unread:
        warn_once_per_machine(initial.unread)
    begins = initial is not None and not initial.has_begun
    # A model that begins from another one is looked at without its weights first: what is wrong with it, and whether it fits.
    bare_model = model_of(config, corpus, torch.device("meta") if begins else accelerator.device, initial)
    num_parts = accelerator.num_processes if parallel.is_sharded else 1
    check_memory(bare_model, accelerator.device, config, decision.mode, num_local_processes(), num_parts)
    if initial is not None and begins:
        bare_model = read_source(initial, config, accelerator.device)
        freeze(bare_model, config.optimizer.groups)
    for line in descriptions(bare_model, config.optimizer):
        log.info("optimizer.groups: %s", line)
    fp8 = Fp8Model(decision, config.precision, bare_model) if decision.mode == "fp8" else None
    optimizer = build_optimizer(bare_model, config.optimizer)
    # Before prepare(): where blocks are compiled, what it gives back is a copy, with attributes of its own.
    compiler, num_tokens = compile_backend(accelerator), config.micro_batch * config.sequence_length
    bare_model.head_way = find_head_way(
        bare_model, num_tokens, compiler=compiler, autocast=accelerator.autocast, gather=all_gather
    )
    model, optimizer = parallel.prepare(bare_model, optimizer)
    precision = build_monitor(
        fp8,
        decision,
        config.precision,
        accelerator,
        parallel.unwrap(model),
        optimizer,
        flops_per_token=flops_per_token(bare_model, config.sequence_length),
        journal=Journal(run_folder(config)),
        accumulation=accumulation,
        compiled=compiler != "no",
        deterministic=config.deterministic,
    )
    check_groups(bare_model, optimizer)  # again, since prepare() may swap parameters
    return Prepared(model, bare_model, optimizer, precision, initial)


def blocks_of(config: Config) -> torch.nn.Module:
    """The model of a recipe for its shapes only, on no device."""
    if initial := initial_of(config, reads=False):
        return structure_of(initial, config, torch.device("meta"))
    return build_shapes(config.model.preset, config.model.config, sequence_length=config.sequence_length)


def model_type_of(config: Config) -> str | None:
    """The family of a recipe's model; None where it does not name one."""
    if initial := initial_of(config, reads=False):
        return initial.made.config.model_type
    preset = preset_fields(config.model.preset) if config.model.preset else {}
    return config.model.config.get("model_type", preset.get("model_type"))


def model_of(config: Config, corpus: Corpus, device: torch.device, initial: Initial | None) -> torch.nn.Module:
    """The model of a recipe, for its data, with random weights and what it freezes; ConfigError with what is wrong with it, or with the prompts of its samples.

    initial  where its weights begin, whose shapes it has then
    """
    vocab_size, tokenizer = corpus.vocab_size, corpus.tokenizer
    wanted, length, eot_id = config.model, config.sequence_length, tokenizer.eot_id if tokenizer else None
    if tokenizer:
        check_prompts(prompts_of(config.evaluation), tokenizer, length)
    if initial:
        model = structure_of(initial, config, device)
    else:
        resolved = resolve(wanted.preset, wanted.config, vocab_size=vocab_size, sequence_length=length, eot_id=eot_id)
        recomputes = wanted.gradient_checkpointing
        model = build_model(
            resolved, vocab_size=vocab_size, seed=config.seed, device=device, gradient_checkpointing=recomputes
        )
    freeze(model, config.optimizer.groups)
    return model
