"""A config becomes everything a run needs, built in one readable order and held in one frozen dataclass.

Rooms do not know each other; what one needs of another is handed to it here. `Run` holds, it does not act.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer import files
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.description import Description
from trainer.checkpoint.format.retention import policy_of
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.ranks import Ranks
from trainer.checkpoint.resume.restore import Restorer
from trainer.checkpoint.save.checkpointer import Checkpointer
from trainer.checkpoint.save.forecast import Course
from trainer.config.batch import accumulation_steps
from trainer.config.folders import checkpoints_folder, run_folder
from trainer.config.schema import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.loader import TokenLoader, validation_batches
from trainer.errors import ConfigError
from trainer.evaluation.loss import ValidationLoss, validation_loss
from trainer.evaluation.samples import Sample, check_prompts, prompts_of, take_samples
from trainer.evaluation.schedule import EvalSchedule
from trainer.evaluation.task_evaluator import TaskEvaluator
from trainer.evaluation.tasks import open_tasks
from trainer.journal import Journal
from trainer.launch.accelerator import device_words, make_accelerator
from trainer.launch.compile_choice import compile_backend
from trainer.launch.environment import LaunchEnv, num_local_processes
from trainer.launch.logging_setup import open_log
from trainer.launch.process_group import all_gather, init_process_group, main_process_first
from trainer.metrics.console import console_handler
from trainer.metrics.curves import CURVE
from trainer.metrics.details import detail_interval
from trainer.metrics.hardware import HardwareSampler
from trainer.metrics.meters import SpeedMeter
from trainer.metrics.probes import Probes, histogram_interval
from trainer.metrics.profiler import Profiler
from trainer.metrics.reporter import SAVED, Reporter
from trainer.metrics.slow_alarm import SlowAlarm
from trainer.metrics.stopwatch import Stopwatch
from trainer.metrics.tags import FP8, FP8_FIT, FP8_GAP, GPU, MFU, TASKS, VALIDATION
from trainer.metrics.trackers import check_tracker_names
from trainer.model.build import build_model, build_shapes
from trainer.model.flops import flops_per_token, parameter_counts, peak_flops
from trainer.model.head_way import find_head_way
from trainer.model.resolve import resolve
from trainer.model.scores import token_scores
from trainer.optim.build import build_optimizer
from trainer.optim.groups import check_groups
from trainer.optim.schedule import build_schedule
from trainer.precision.decide import Decision, tf32_sentence
from trainer.precision.fp8_model import Fp8Model
from trainer.precision.measured import Measured, find
from trainer.precision.monitor import PrecisionMonitor, build_monitor
from trainer.precision.negotiate import negotiate, uncompiled
from trainer.run.consensus import Consensus
from trainer.run.identity import computing_conditions, describe, replay_facts, replay_key, speed_conditions
from trainer.run.memory import check_memory
from trainer.run.out_of_memory import record_memory_history
from trainer.safety.guard import NonFiniteGuard
from trainer.safety.parent import launcher_pid
from trainer.safety.stop import StopRequest
from trainer.state import Progress, TrainState
from trainer.text import count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything the loop needs, in the order it needs it."""

    config: Config
    accelerator: Accelerator
    precision: PrecisionMonitor
    corpus: Corpus
    loader: TokenLoader
    model: torch.nn.Module
    """What `Accelerator.prepare` gave back: takes inputs and labels [B, T], returns the mean loss."""
    bare_model: torch.nn.Module
    """The transformers model inside, never compiled: its keys are stored, and it generates."""
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    state: TrainState
    guard: NonFiniteGuard
    stop: StopRequest
    eval_schedule: EvalSchedule
    validate: Callable[[], ValidationLoss] | None
    """Validation loss of the model as it is; None without held-out data."""
    samples: Callable[[], list[Sample]]
    """What the model writes now; called on one rank."""
    tasks: TaskEvaluator
    """The questions of `evaluation.tasks`, put to the model as it is."""
    restorer: Restorer
    checkpointer: Checkpointer
    consensus: Consensus
    reporter: Reporter
    stopwatch: Stopwatch
    probes: Probes
    profiler: Profiler
    folder: Path
    """runs/NAME."""

    @property
    def progress(self) -> Progress:
        return self.state.progress


def build_run(config: Config, stop: StopRequest) -> Run:
    """Builds a run as it starts, before anything is restored."""
    check_tracker_names(config.metrics.trackers)
    accelerator, decision = _join(config)
    log.info("opening the data")
    corpus = main_process_first(accelerator, lambda: open_corpus(config.data, config.sequence_length))
    loader = TokenLoader(
        corpus.train,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=config.seed,
        device=accelerator.device,
    )
    log.info("building the model")
    bare_model = model_of(config, corpus, accelerator.device)
    check_memory(
        bare_model,
        accelerator.device,
        micro_batch=config.micro_batch,
        sequence_length=config.sequence_length,
        precision=decision.mode,
        num_local_processes=num_local_processes(),
    )
    fp8 = Fp8Model(decision, config.precision, bare_model) if decision.mode == "fp8" else None
    optimizer = build_optimizer(bare_model, config.optimizer)
    # Before prepare(): where blocks are compiled, what it gives back is a copy, with attributes of its own.
    compiler, num_tokens = compile_backend(accelerator), config.micro_batch * config.sequence_length
    bare_model.head_way = find_head_way(
        bare_model, num_tokens, compiler=compiler, autocast=accelerator.autocast, gather=all_gather
    )
    model, optimizer = accelerator.prepare(bare_model, optimizer)
    precision = build_monitor(
        fp8,
        decision,
        config.precision,
        accelerator,
        model,
        optimizer,
        flops_per_token=flops_per_token(bare_model, config.sequence_length),
        journal=Journal(run_folder(config)),
        accumulation=loader.accumulation,
        compiled=compiler != "no",
        deterministic=config.deterministic,
    )
    check_groups(bare_model, optimizer)  # again, since prepare() may swap parameters

    conditions = computing_conditions(accelerator, decision, optimizer=config.optimizer.name, head=bare_model.head_way)
    description = describe(config, corpus, bare_model, lambda: precision.record, conditions)
    eval_schedule = EvalSchedule(config.evaluation, config.max_steps, description.validation)
    guard = NonFiniteGuard(config.safety.max_bad_steps, scaled=accelerator.scaler is not None)
    state = TrainState(Progress(), guard=guard, evaluation=eval_schedule, precision=precision)
    reporter = _build_reporter(config, accelerator, bare_model, precision, description)
    course = Course(
        max_steps=config.max_steps,
        global_batch=config.global_batch,
        sequences_per_epoch=corpus.train.num_sequences,
        evaluation_every_steps=config.evaluation.every_steps if corpus.validation else None,
    )
    store, folder = CheckpointStore(checkpoints_folder(config)), run_folder(config)
    checkpoints = CheckpointContext(
        accelerator=accelerator,
        ranks=Ranks(accelerator, store.folder),
        model=bare_model,
        optimizer=optimizer,
        state=state,
        store=store,
        description=description,
        policy=policy_of(config.checkpoint),
        run_folder=folder,
        metrics_file=folder / CURVE,
        marker=folder / SAVED,
    )
    restorer = Restorer(checkpoints, config.max_steps)
    checkpointer = Checkpointer(
        checkpoints, config.checkpoint, course, before_commit=reporter.sync, report=reporter.saved
    )
    rank, device = accelerator.process_index, accelerator.device
    profiler = Profiler(config.profile.steps, folder, rank=rank, device=device)
    is_followed = partial(_is_followed, evaluations=eval_schedule, checkpointer=checkpointer, profiler=profiler)
    return Run(
        config=config,
        accelerator=accelerator,
        precision=precision,
        corpus=corpus,
        loader=loader,
        model=model,
        bare_model=bare_model,
        optimizer=optimizer,
        schedule=build_schedule(
            config.schedule.name,
            max_steps=config.max_steps,
            warmup_steps=config.schedule.warmup_steps,
            min_lr_fraction=config.schedule.min_lr_fraction,
            decay_fraction=config.schedule.decay_fraction,
        ),
        state=state,
        guard=guard,
        stop=stop,
        eval_schedule=eval_schedule,
        validate=_build_validation(config, corpus, accelerator, model),
        restorer=restorer,
        checkpointer=checkpointer,
        consensus=Consensus(accelerator, max_steps=config.max_steps, is_followed=is_followed),
        reporter=reporter,
        stopwatch=Stopwatch(accelerator.device),
        probes=_build_probes(config, accelerator, bare_model),
        profiler=profiler,
        folder=run_folder(config),
        tasks=_build_tasks(config, corpus, accelerator, bare_model),
        samples=lambda: samples_of(config, corpus, bare_model),
    )


def _join(config: Config) -> tuple[Accelerator, Decision]:
    """Finds the other processes, and with them the precision that all compute in."""
    place = LaunchEnv.from_env()
    accumulation_steps(config.global_batch, config.micro_batch, place.world_size)
    open_log(run_folder(config), is_main=place.is_main, console=console_handler())
    device = init_process_group(place, deterministic=config.deterministic)
    _check_length(config)
    measured = _measured(config, place, device) if place.precision == "fp8" else None
    decision = negotiate(
        place.precision,
        config.precision,
        device_type=device.type,
        micro_batch=config.micro_batch,
        sequence_length=config.sequence_length,
        model=lambda: blocks_of(config),
        gather=all_gather,
        measured=measured,
    )
    accelerator = make_accelerator(
        place,
        precision=decision.mode,
        deterministic=config.deterministic,
        seed=config.seed,
        trackers=config.metrics.trackers,
        runs_folder=files.project_folder() / config.runs_folder,
        uncompiled=uncompiled(decision),
        tf32=config.precision.tf32,
    )
    log.info("%s: %s", config.name, device_words(accelerator))
    if config.profile.memory_history and accelerator.device.type == "cuda":
        record_memory_history()
    log.info(decision.sentence)
    if place.is_main and (slow := decision.slow_warning):
        log.warning(slow)
    if sentence := tf32_sentence(decision.mode, device.type, config.precision.tf32):
        log.info(sentence)
    if place.is_main and measured and decision.mode == "fp8" and (warning := measured.warning(decision.recipe)):
        log.warning(warning)
    return accelerator, decision


def _check_length(config: Config) -> None:
    """Refuses processes that would take different numbers of steps, as machines whose recipe or data differ make of max_epochs."""
    by_rank = all_gather(config.max_steps)
    if len(set(by_rank)) > 1:
        raise ConfigError(
            f"max_steps is not the same in all processes, but by rank: {', '.join(map(str, by_rank))}; give all machines the same recipe and data"
        )


def _measured(config: Config, place: LaunchEnv, device: torch.device) -> Measured | None:
    """What `bench precision` found for such a run, as rank 0 reads it; None where another rank has another device."""
    conditions = speed_conditions(config, place.world_size, device)
    found = all_gather((conditions, find(run_folder(config).parent, conditions) if place.is_main else None))
    return found[0][1] if all(others == conditions for others, _ in found) else None


def _is_followed(step: int, evaluations: EvalSchedule, checkpointer: Checkpointer, profiler: Profiler) -> bool:
    """Whether work follows this step which needs the results up to it."""
    is_seen = evaluations.due(step) or evaluations.samples_due(step) or profiler.is_written_after(step)
    return is_seen or checkpointer.due() is not None


def blocks_of(config: Config) -> torch.nn.Module:
    """The model of a recipe for its shapes only, on no device."""
    return build_shapes(config.model.preset, config.model.config, sequence_length=config.sequence_length)


def model_of(config: Config, corpus: Corpus, device: torch.device) -> torch.nn.Module:
    """The model of a recipe, for its data; ConfigError with what is wrong with it, or with the prompts of its samples."""
    vocab_size, tokenizer = corpus.vocab_size, corpus.tokenizer
    model_config = resolve(
        config.model.preset,
        config.model.config,
        vocab_size=vocab_size,
        sequence_length=config.sequence_length,
        eot_id=tokenizer.eot_id if tokenizer else None,
    )
    if tokenizer:
        check_prompts(prompts_of(config.evaluation), tokenizer, config.sequence_length)
    return build_model(
        model_config,
        vocab_size=vocab_size,
        seed=config.seed,
        device=device,
        gradient_checkpointing=config.model.gradient_checkpointing,
    )


def _build_reporter(
    config: Config,
    accelerator: Accelerator,
    model: torch.nn.Module,
    precision: PrecisionMonitor,
    description: Description,
) -> Reporter:
    flops = flops_per_token(model, config.sequence_length)
    device, decision = accelerator.device, precision.record.decision
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_flops(name, decision.mode)
    parameters = parameter_counts(model)
    tokens_a_step = config.global_batch * config.sequence_length
    log.info(
        "model: %s parameters (%s without embeddings), %s FLOP a token",
        count(parameters.total),
        count(parameters.non_embedding),
        count(flops),
    )
    log.info(
        "a step: %d sequences of %d = %s tokens; the run: %d steps, %s tokens",
        config.global_batch,
        config.sequence_length,
        count(tokens_a_step),
        config.max_steps,
        count(tokens_a_step * config.max_steps),
    )
    if peak is None:
        log.info("MFU: unknown, because the peak of this device is not known")
    return Reporter(
        accelerator,
        run_folder(config),
        config.metrics,
        name=config.name,
        max_steps=config.max_steps,
        sample=HardwareSampler(
            device,
            {"checkpoints": checkpoints_folder(config), "runs": run_folder(config)},
            num_local_processes=num_local_processes(),
        ).sample,
        slow_alarm=SlowAlarm(
            config.metrics.slow_ratio,
            Journal(run_folder(config)),
            launcher_pid=launcher_pid(),
            kind_of_step=lambda step: (precision.record.mode, _is_profiled(config, step)),
        ),
        features=_features(config, accelerator, decision, has_peak=peak is not None),
        meter=SpeedMeter(
            flops_per_token=flops,
            peak_flops=lambda: peak_flops(name, precision.record.mode),
            num_devices=accelerator.num_processes,
        ),
        replay_key=replay_key(facts := replay_facts(config, accelerator, decision, description, model.head_way)),
        replay_facts=facts,
    )


def _features(config: Config, accelerator: Accelerator, decision: Decision, *, has_peak: bool) -> set[str]:
    """What this run has that others lack: TensorBoard gets charts for it."""

    def in_fp8(every_steps: int) -> bool:
        return decision.mode == "fp8" and 0 < every_steps <= config.max_steps

    found = {
        MFU: has_peak,
        VALIDATION: bool(config.data.corpus or config.data.validation),
        TASKS: bool(config.evaluation.tasks),
        FP8: decision.asked == "fp8",  # a fallback draws that nothing is in it
        FP8_FIT: in_fp8(config.precision.statistics_every_steps),
        FP8_GAP: in_fp8(config.precision.shadow_every_steps),
        GPU: accelerator.device.type == "cuda",
    }
    return {feature for feature, is_there in found.items() if is_there}


def _is_profiled(config: Config, step: int) -> bool:
    first, last = config.profile.steps or (1, 0)
    return first <= step <= last


def _build_probes(config: Config, accelerator: Accelerator, model: torch.nn.Module) -> Probes:
    return Probes(
        model,
        detail_every_steps=detail_interval(config.metrics.detail_every_steps, config.max_steps),
        is_main=accelerator.is_main_process,
        histogram_every_steps=histogram_interval(config.metrics.histogram_every_steps, config.max_steps),
    )


def _build_validation(
    config: Config, corpus: Corpus, accelerator: Accelerator, model: torch.nn.Module
) -> Callable[[], ValidationLoss] | None:
    if corpus.validation is None:
        log.info("no validation data: there will be no validation loss, and no best checkpoint")
        return None
    if (wanted := config.evaluation.num_sequences or 0) > (there := corpus.validation.num_sequences):
        log.warning(
            "evaluation.num_sequences is %d, and %d sequences are held out: all of them are read", wanted, there
        )
    inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        micro_batches = validation_batches(
            corpus.validation,
            num_sequences=config.evaluation.num_sequences,
            micro_batch=config.micro_batch,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            device=accelerator.device,
        )
        return ((batch.inputs, batch.labels) for batch in micro_batches)

    return lambda: validation_loss(inner, batches(), lambda total: accelerator.reduce(total, reduction="sum"))


def samples_of(config: Config, corpus: Corpus, model: torch.nn.Module) -> list[Sample]:
    """Texts that continue the recipe's prompts, the same for the same weights; none where none is wanted or can be."""
    prompts, tokenizer = prompts_of(config.evaluation), corpus.tokenizer
    if not prompts or tokenizer is None:
        return []
    return take_samples(
        model,
        prompts,
        tokenizer,
        num_tokens=config.evaluation.sample_tokens,
        sequence_length=config.sequence_length,
        vocab_size=corpus.vocab_size,
        seed=config.seed,
    )


def _build_tasks(config: Config, corpus: Corpus, accelerator: Accelerator, model: torch.nn.Module) -> TaskEvaluator:
    """The tasks of the recipe, opened and read as tokens."""
    wanted = config.evaluation
    if wanted.tasks and corpus.validation is None:
        raise ConfigError(
            "evaluation.tasks needs held-out data: tasks are evaluated with the validation loss; set evaluation.tasks=[]"
        )
    tasks = main_process_first(
        accelerator,
        lambda: open_tasks(wanted.tasks, wanted.task_items, files.project_folder()),
    )
    return TaskEvaluator(tasks, model, token_scores, corpus.tokenizer, accelerator)
