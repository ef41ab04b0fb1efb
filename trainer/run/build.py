"""A config becomes everything a run needs, built in one readable order and held in one frozen dataclass.

Rooms do not know each other; what one needs of another is handed to it here. `Run` holds, it does not act.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.gathered_files import GatheredFiles
from trainer.checkpoint.format.manifest import Description
from trainer.checkpoint.format.retention import policy_of
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.whole_files import WholeFiles
from trainer.checkpoint.ranks import Ranks
from trainer.checkpoint.resume.restore import Restorer
from trainer.checkpoint.save.checkpointer import Checkpointer
from trainer.checkpoint.save.forecast import Course
from trainer.collectives import main_process_first
from trainer.config.folders import checkpoints_folder, run_folder
from trainer.config.schema import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.loader import TokenLoader
from trainer.evaluation.loss import ValidationLoss
from trainer.evaluation.samples import Sample
from trainer.evaluation.schedule import EvalSchedule
from trainer.evaluation.task_evaluator import TaskEvaluator
from trainer.journal import Journal
from trainer.metrics.curves import CURVE
from trainer.metrics.probes import Probes
from trainer.metrics.profiler import Profiler
from trainer.metrics.reporter import SAVED, Reporter
from trainer.metrics.stopwatch import Stopwatch
from trainer.metrics.trackers import check_tracker_names
from trainer.optim.rules import former_groups
from trainer.optim.schedule import build_schedule
from trainer.parallel import Parallel, parallel_of
from trainer.precision.monitor import PrecisionMonitor
from trainer.run.consensus import Consensus
from trainer.run.evaluating import build_task_evaluator, build_validation, samples_of
from trainer.run.experts import ExpertsMonitor
from trainer.run.identity import computing_conditions, describe
from trainer.run.initial import Initial
from trainer.run.join import join
from trainer.run.prepared import Prepared, prepare
from trainer.run.recheck import Recheck
from trainer.run.reporting import build_experts, build_probes, build_reporter
from trainer.safety.guard import NonFiniteGuard
from trainer.safety.requests import Requests
from trainer.safety.rollback import Rollbacks
from trainer.safety.spikes import SpikeGuard
from trainer.state import Progress, TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything the loop needs, in the order it needs it."""

    config: Config
    accelerator: Accelerator
    parallel: Parallel
    precision: PrecisionMonitor
    corpus: Corpus
    loader: TokenLoader
    initial: Initial | None
    """Where its weights begin; None for random ones."""
    model: torch.nn.Module
    """What `Accelerator.prepare` gave back: takes inputs and labels [B, T], returns the mean loss."""
    bare_model: torch.nn.Module
    """The transformers model inside, never compiled: its keys are stored, and it generates."""
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    state: TrainState
    guard: NonFiniteGuard
    spikes: SpikeGuard
    recheck: Recheck
    rollbacks: Rollbacks
    requests: Requests
    eval_schedule: EvalSchedule
    validate: Callable[[], ValidationLoss] | None
    """Validation loss of the model as it is; None without held-out data."""
    samples: Callable[[], list[Sample]]
    """What the model writes now; called where `parallel.runs_here(SAMPLES_READ)`."""
    tasks: TaskEvaluator
    """The questions of `evaluation.tasks`, put to the model as it is."""
    restorer: Restorer
    checkpointer: Checkpointer
    consensus: Consensus
    reporter: Reporter
    stopwatch: Stopwatch
    probes: Probes
    experts: ExpertsMonitor
    profiler: Profiler
    folder: Path
    """runs/NAME."""

    @property
    def progress(self) -> Progress:
        return self.state.progress


def build_run(config: Config, requests: Requests) -> Run:
    """Builds a run as it starts, before anything is restored."""
    check_tracker_names(config.metrics.trackers)
    accelerator, decision = join(config)
    device, rank, folder = accelerator.device, accelerator.process_index, run_folder(config)
    log.info("opening the data")
    corpus = main_process_first(lambda: open_corpus(config.data, config.sequence_length))
    loader = _build_loader(config, corpus, accelerator)
    log.info("building the model")
    parallel = parallel_of(accelerator)
    made = prepare(config, accelerator, parallel, decision, corpus, loader.accumulation)
    model, bare_model, precision = made.model, made.bare_model, made.precision
    conditions = computing_conditions(accelerator, decision, optimizer=config.optimizer.name, head=bare_model.head_way)
    description = describe(config, corpus, bare_model, lambda: precision.record, conditions)
    eval_schedule = EvalSchedule(config.evaluation, config.max_steps, description.validation)
    guard = NonFiniteGuard(config.safety.max_bad_steps, scaled=accelerator.scaler is not None)
    spikes = SpikeGuard(config.safety.spike, device, can_skip=accelerator.scaler is None)
    rollbacks = Rollbacks(config.safety.rollback)
    state = TrainState(
        Progress(), guard=guard, spikes=spikes, rollbacks=rollbacks, evaluation=eval_schedule, precision=precision
    )
    reporter = build_reporter(config, accelerator, bare_model, precision, description)
    checkpoints = _checkpoint_context(config, accelerator, parallel, made, state, description)
    checkpointer = Checkpointer(
        checkpoints, config.checkpoint, _course(config, corpus), before_commit=reporter.sync, report=reporter.saved
    )
    profiler = Profiler(config.profile.steps, folder, rank=rank, device=device)
    is_followed = partial(_is_followed, evaluations=eval_schedule, checkpointer=checkpointer, profiler=profiler)
    return Run(
        config=config,
        accelerator=accelerator,
        parallel=parallel,
        precision=precision,
        corpus=corpus,
        loader=loader,
        initial=made.initial,
        model=model,
        bare_model=bare_model,
        optimizer=made.optimizer,
        schedule=build_schedule(max_steps=config.max_steps, **dict(config.schedule)),
        state=state,
        guard=guard,
        spikes=spikes,
        recheck=Recheck(device, Journal(folder) if rank == 0 else None, partial(_not_repeatable, config, precision)),
        rollbacks=rollbacks,
        requests=requests,
        eval_schedule=eval_schedule,
        validate=build_validation(config, corpus, accelerator, parallel.unwrap(model)),
        restorer=Restorer(checkpoints, config.max_steps),
        checkpointer=checkpointer,
        consensus=Consensus(accelerator, max_steps=config.max_steps, is_followed=is_followed),
        reporter=reporter,
        stopwatch=Stopwatch(device),
        probes=build_probes(config, parallel, bare_model),
        experts=build_experts(config, accelerator, bare_model),
        profiler=profiler,
        folder=folder,
        tasks=build_task_evaluator(config, corpus, accelerator, parallel, bare_model),
        samples=lambda: samples_of(config, corpus, parallel, bare_model),
    )


def _not_repeatable(config: Config, precision: PrecisionMonitor) -> str | None:
    """Why a step of this run cannot be computed again to the last bit; None where it can."""
    if precision.record.mode == "fp8":
        return "in fp8 each pass changes how the next one is scaled"
    return None if config.deterministic else "deterministic is false, so other numbers would say nothing"


def _build_loader(config: Config, corpus: Corpus, accelerator: Accelerator) -> TokenLoader:
    return TokenLoader(
        corpus.train,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=config.seed,
        device=accelerator.device,
    )


def _checkpoint_context(
    config: Config,
    accelerator: Accelerator,
    parallel: Parallel,
    made: Prepared,
    state: TrainState,
    description: Description,
) -> CheckpointContext:
    """What saving and restoring share."""
    store, folder = CheckpointStore(checkpoints_folder(config)), run_folder(config)
    layout, has_copies = GatheredFiles if parallel.is_sharded else WholeFiles, not parallel.is_sharded
    return CheckpointContext(
        accelerator=accelerator,
        ranks=Ranks(accelerator, store.folder),
        model=made.bare_model,
        optimizer=made.optimizer,
        state=state,
        store=store,
        description=description,
        policy=policy_of(
            config.checkpoint,
            config.safety.rollback.max,
            keep_agreed=int(has_copies and accelerator.num_processes > 1 and config.safety.digest_every_steps > 0),
        ),
        run_folder=folder,
        metrics_file=folder / CURVE,
        marker=folder / SAVED,
        layout=layout(former_groups(made.bare_model, config.optimizer.groups)),
    )


def _course(config: Config, corpus: Corpus) -> Course:
    steps, batch, epoch = config.max_steps, config.global_batch, corpus.train.num_sequences
    evaluation = config.evaluation.every_steps if corpus.validation else None
    return Course(max_steps=steps, global_batch=batch, sequences_per_epoch=epoch, evaluation_every_steps=evaluation)


def _is_followed(step: int, evaluations: EvalSchedule, checkpointer: Checkpointer, profiler: Profiler) -> bool:
    """Whether work follows this step which needs the results up to it."""
    is_seen = evaluations.due(step) or evaluations.samples_due(step) or profiler.is_written_after(step)
    return is_seen or checkpointer.due() is not None
