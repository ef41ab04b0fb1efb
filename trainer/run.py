"""The hall: a config becomes everything a run needs, built in one readable order and held in one frozen dataclass.

Rooms do not know each other; what one needs of another is handed to it here. `Run` holds, it does not act.
"""

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import Accelerator

from trainer import __version__, files, launch
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.ranks import Ranks
from trainer.checkpoint.restore import Description, Restorer
from trainer.checkpoint.resume import Resolution
from trainer.checkpoint.retention import policy_of
from trainer.checkpoint.store import CheckpointStore
from trainer.config.batch import accumulation_steps
from trainer.config.folders import checkpoints_folder, resume_point, run_folder
from trainer.config.load import dump, flatten
from trainer.config.schema import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.loader import TokenLoader, validation_batches
from trainer.errors import CheckpointError, ConfigError
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.generate import num_positions
from trainer.evaluation.loss import ValidationLoss, validation_loss
from trainer.journal import Journal
from trainer.metrics.console import console_handler
from trainer.metrics.curves import CURVE
from trainer.metrics.meters import SpeedMeter
from trainer.metrics.reporter import SAVED, Reporter
from trainer.metrics.tags import MEANINGS, guide
from trainer.metrics.trackers import check_tracker_names
from trainer.model.build import build_model
from trainer.model.flops import flops_per_token, parameter_counts, peak_flops
from trainer.model.resolve import resolve
from trainer.optim.build import build_optimizer
from trainer.optim.groups import check_groups, hyperparameters, restore_hyperparameters
from trainer.optim.schedule import build_schedule
from trainer.precision.decide import Decision
from trainer.precision.settle import settle, uncompiled
from trainer.precision.statistics import FP8_MEANINGS
from trainer.precision.watch import PrecisionWatch
from trainer.safety.guard import LossGuard
from trainer.safety.stop import StopRequest
from trainer.state import Progress, TrainState
from trainer.text import count, duration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything the loop needs, in the order it needs it."""

    config: Config
    accelerator: Accelerator
    precision: PrecisionWatch
    corpus: Corpus
    loader: TokenLoader
    model: torch.nn.Module
    """What `Accelerator.prepare` gave back: takes inputs and labels [B, T], returns the mean loss."""
    bare_model: torch.nn.Module
    """The transformers model inside, never compiled: its keys are stored, and it generates."""
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    state: TrainState
    guard: LossGuard
    stop: StopRequest
    evaluator: Evaluator
    validate: Callable[[], ValidationLoss] | None
    """Validation loss of the model as it is; None without held-out data."""
    restorer: Restorer
    checkpointer: Checkpointer
    reporter: Reporter
    folder: Path
    """runs/NAME."""

    @property
    def progress(self) -> Progress:
        return self.state.progress


def build_run(config: Config, stop: StopRequest) -> Run:
    """Builds a run and brings it to where it stands: freshly started, or restored from a checkpoint."""
    check_tracker_names(config.metrics.trackers)
    place = launch.asked()
    accumulation_steps(config.global_batch, config.micro_batch, place.world_size)
    launch.open_log(run_folder(config), is_main=place.is_main, console=console_handler())
    device = launch.meet(place, deterministic=config.deterministic)
    decision = settle(
        place.precision, config.precision, device_type=device.type, micro_batch=config.micro_batch, sequence_length=config.sequence_length,
        model=lambda: _build_model(config, None, torch.device("meta")), gather=launch.gather,
    )  # fmt: skip
    accelerator = launch.start(
        place, precision=decision.mode, deterministic=config.deterministic, seed=config.seed,
        trackers=config.metrics.trackers, runs_folder=files.project_folder() / config.runs_folder, uncompiled=uncompiled(decision),
    )  # fmt: skip
    log.info("%s: %s", config.name, launch.describe(accelerator))
    log.info(decision.sentence)

    corpus = launch.first_on_main(accelerator, lambda: open_corpus(config.data, config.sequence_length))
    loader = TokenLoader(
        corpus.train, global_batch=config.global_batch, micro_batch=config.micro_batch, rank=accelerator.process_index,
        world_size=accelerator.num_processes, seed=config.seed, device=accelerator.device,
    )  # fmt: skip
    bare_model = _build_model(config, corpus, accelerator.device)
    precision = PrecisionWatch(decision, config.precision, bare_model)
    optimizer = _build_optimizer(config, bare_model)
    model, optimizer = accelerator.prepare(bare_model, optimizer)
    precision.attach(
        accelerator, model, optimizer, flops_per_token=flops_per_token(bare_model, config.sequence_length), journal=Journal(run_folder(config)),
        accumulation=loader.accumulation, compiled=launch.compile_backend(accelerator) != "no", deterministic=config.deterministic,
    )  # fmt: skip
    check_groups(bare_model, optimizer)  # again, since prepare() may swap parameters

    description = _describe(config, corpus, bare_model, precision)
    evaluator = Evaluator(config.evaluation.every_steps, config.max_steps, description.validation)
    guard = LossGuard(config.safety.max_bad_steps, scaled=accelerator.scaler is not None)
    state = TrainState(Progress(), guard=guard, evaluation=evaluator, precision=precision)
    reporter = _build_reporter(config, accelerator, bare_model, decision, description)
    store = CheckpointStore(checkpoints_folder(config))
    ranks, policy = Ranks(accelerator, store.folder), policy_of(config.checkpoint)
    restorer = Restorer(accelerator, ranks, bare_model, optimizer, state, store, description, policy, run_folder(config))
    checkpointer = Checkpointer(
        accelerator, ranks, bare_model, optimizer, state, store, description, restorer, config.checkpoint,
        policy, run_folder=run_folder(config), curve=CURVE, mark=SAVED, max_steps=config.max_steps,
        global_batch=config.global_batch, sequences_per_epoch=corpus.train.num_sequences, before_commit=reporter.sync,
        report=reporter.saved,
    )  # fmt: skip
    run = Run(
        config=config, accelerator=accelerator, precision=precision, corpus=corpus, loader=loader, model=model,
        bare_model=bare_model, optimizer=optimizer,
        schedule=build_schedule(
            config.schedule.name, max_steps=config.max_steps, warmup_steps=config.schedule.warmup_steps,
            min_lr_fraction=config.schedule.min_lr_fraction, decay_fraction=config.schedule.decay_fraction,
        ),
        state=state, guard=guard, stop=stop, evaluator=evaluator,
        validate=_build_validation(config, corpus, accelerator, model), restorer=restorer, checkpointer=checkpointer,
        reporter=reporter, folder=run_folder(config),
    )  # fmt: skip
    _bring_to_its_place(run)
    return run


def _build_model(config: Config, corpus: Corpus | None, device: torch.device) -> torch.nn.Module:
    """The model of a recipe; without the corpus its blocks only, with a vocabulary of no meaning."""
    vocab_size = corpus.vocab_size if corpus else 1
    eot_id = corpus.tokenizer.eot_id if corpus and corpus.tokenizer else None
    model_config = resolve(
        config.model.preset, config.model.config, vocab_size=vocab_size, sequence_length=config.sequence_length, eot_id=eot_id
    )  # fmt: skip
    if corpus:
        _check_prompt(config, corpus, num_positions(model_config))
    return build_model(
        model_config, vocab_size=vocab_size, seed=config.seed, device=device, gradient_checkpointing=config.model.gradient_checkpointing
    )  # fmt: skip


def sample_prompt(config: Config, corpus: Corpus) -> list[int] | None:
    """What the sample at the end of the run continues: an end of text, then the recipe's prompt; None when there is no sample."""
    if corpus.tokenizer is None or not config.evaluation.sample_tokens:
        return None
    return [corpus.tokenizer.eot_id, *corpus.tokenizer.encode(config.evaluation.prompt)]


def _check_prompt(config: Config, corpus: Corpus, positions: int) -> None:
    """Refuses a prompt that leaves the sample no position now, and not once the run is at its end."""
    prompt = sample_prompt(config, corpus)
    if prompt and len(prompt) >= positions:
        raise ConfigError(
            f"evaluation.prompt has {len(prompt)} tokens with the end of text before it, and the model has {positions} positions, which leaves "
            "none for the sample; shorten it, or set evaluation.sample_tokens to 0"
        )


def _build_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    wanted = config.optimizer
    return build_optimizer(
        model, name=wanted.name, lr=wanted.lr, betas=wanted.betas, eps=wanted.eps, weight_decay=wanted.weight_decay,
        muon_lr=wanted.muon_lr, muon_momentum=wanted.muon_momentum, muon_weight_decay=wanted.muon_weight_decay,
    )  # fmt: skip


def _build_reporter(
    config: Config, accelerator: Accelerator, model: torch.nn.Module, decision: Decision, description: Description
) -> Reporter:
    flops = flops_per_token(model, config.sequence_length)
    device = accelerator.device
    peak = peak_flops(torch.cuda.get_device_name(device), decision.mode) if device.type == "cuda" else None
    if peak is None:
        log.info("MFU: unknown, because the peak of this device is not known")
    parameters = parameter_counts(model)
    tokens_a_step = config.global_batch * config.sequence_length
    log.info(
        "model: %s parameters (%s without embeddings), %sFLOP a token", count(parameters.total), count(parameters.non_embedding),
        count(flops),
    )  # fmt: skip
    log.info(
        "a step: %d sequences of %d = %s tokens; the run: %d steps, %s tokens", config.global_batch, config.sequence_length,
        count(tokens_a_step), config.max_steps, count(tokens_a_step * config.max_steps),
    )  # fmt: skip
    return Reporter(
        accelerator, run_folder(config), name=config.name, max_steps=config.max_steps,
        console_every_steps=config.metrics.console_every_steps, trackers=config.metrics.trackers,
        tracker_options=config.metrics.tracker_options, sample=dict,
        meter=SpeedMeter(flops_per_token=flops, peak_flops=peak, num_devices=accelerator.num_processes),
        replay_key=_replay_key(config, accelerator, decision, description),
    )  # fmt: skip


def _build_validation(
    config: Config, corpus: Corpus, accelerator: Accelerator, model: torch.nn.Module
) -> Callable[[], ValidationLoss] | None:
    if corpus.validation is None:
        log.info("no validation data: there will be no validation loss, and no best checkpoint")
        return None
    inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        micro_batches = validation_batches(
            corpus.validation, num_sequences=config.evaluation.num_sequences, micro_batch=config.micro_batch,
            rank=accelerator.process_index, world_size=accelerator.num_processes, device=accelerator.device,
        )  # fmt: skip
        return ((batch.inputs, batch.labels) for batch in micro_batches)

    return lambda: validation_loss(inner, batches(), lambda total: accelerator.reduce(total, reduction="sum"))


def _describe(config: Config, corpus: Corpus, model: torch.nn.Module, precision: PrecisionWatch) -> Description:
    """The facts that a manifest states; `identity` are those that a resume must find again."""
    held_out = (corpus.validation.fingerprint, config.evaluation.num_sequences) if corpus.validation else None
    return Description(
        identity={
            "parameter_shapes": _digest(sorted((name, list(p.shape)) for name, p in model.named_parameters())),
            "vocab_size": corpus.vocab_size,
            "tokenizer": corpus.tokenizer.sha256 if corpus.tokenizer else None,
            "training_data": corpus.train.fingerprint,
            "sequence_length": config.sequence_length,
            "seed": config.seed,
            "optimizer": config.optimizer.name,
        },
        model=json.loads(model.config.to_json_string(use_diff=False)),
        tokenizer=corpus.tokenizer.source if corpus.tokenizer else None,
        vocab_size=corpus.vocab_size,
        precision=precision.label,
        precision_facts=precision.facts,
        versions=_versions(),
        config_text=dump(config),
        validation=_digest(held_out) if held_out else None,
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "accelerate", "transformers")
    return {"trainer": __version__, "python": platform.python_version(), **{package: version(package) for package in packages}}


def _replay_key(config: Config, accelerator: Accelerator, decision: Decision, description: Description) -> str:
    """Names everything that must be equal for a replay to be bit-identical; 16 hexadecimal digits."""
    numeric = ("max_steps", "global_batch", "micro_batch", "deterministic", "model.gradient_checkpointing")
    settings = {
        key: value for key, value in flatten(config).items() if key in numeric or key.startswith(("optimizer.", "schedule.", "precision."))
    }  # fmt: skip
    device = accelerator.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    facts = (
        description.identity, description.model, settings, accelerator.num_processes, accelerator.mixed_precision, decision.recipe,
        decision.backend, launch.compile_backend(accelerator), machine, torch.__version__, version("transformers"), version("accelerate"),
    )  # fmt: skip
    return _digest(facts)[:16]


def _fingerprint(run: Run) -> str:
    """Stands for this code, the settings and the packages: deaths under another one say nothing about a checkpoint."""
    package = Path(__file__).resolve().parent
    code = [path.read_bytes().hex() for path in sorted(package.rglob("*.py"))]
    return _digest((code, dump(run.config), run.accelerator.num_processes, torch.__version__, version("accelerate")))[:16]


def _digest(value: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def _bring_to_its_place(run: Run) -> None:
    """Finds where to continue from, warms the model up, and restores it; or starts fresh, and says so."""
    config = run.config
    if run.accelerator.is_main_process:
        Journal(run.folder).write("start", fingerprint=_fingerprint(run), processes=run.accelerator.num_processes, precision=run.precision.label)
    wanted = resume_point(config)
    resolution = run.restorer.find(wanted)
    if resolution.path is None and wanted == "latest":
        _refuse_to_start_over(run)
    run.checkpointer.check_room(resolution.path)
    if run.accelerator.is_main_process:
        _make_folders(run)
    _warm_up(run)
    resumed_step = None
    if resolution.path is None:
        launch.seed_streams(config.seed, run.accelerator.process_index)
        log.info("a fresh start: the run has no checkpoints%s", "" if wanted == "none" else " yet")
    else:
        resumed_step = resolution.manifest.step
        _restore(run, resolution, wanted)
    run.reporter.open(flatten(config), resumed_step, _texts(run))
    run.checkpointer.begin(resumed_step)


def _texts(run: Run) -> dict[str, str]:
    """What TensorBoard's text tab says of this launch, as Markdown by tag."""
    return {
        "run/config": f"```yaml\n{dump(run.config)}```",
        "run/precision": run.precision.words,
        "run/versions": "\n".join(f"- {name} {number}" for name, number in _versions().items()),
        "run/curves": guide(MEANINGS, FP8_MEANINGS),
    }


def _make_folders(run: Run) -> None:
    """The run's folders, and its config.yaml: from here on it is a run; CheckpointError where nothing can be written."""
    folder = checkpoints_folder(run.config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be made ({error.strerror}); mend that, or set checkpoints_folder to another place"
        ) from None
    run.folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(run.folder / "config.yaml", dump(run.config))


def _refuse_to_start_over(run: Run) -> None:
    """The run had checkpoints, and they are gone: starting over would bury what they were."""
    if (run.folder / SAVED).exists():
        raise CheckpointError(
            f"{run.folder.name} has saved checkpoints before, but {checkpoints_folder(run.config)} holds none; put them back (is the disk "
            "mounted?), or start over on purpose with resume_from_checkpoint=none"
        )


def _restore(run: Run, resolution: Resolution, wanted: str) -> None:
    """Loads the checkpoint; the config's hyperparameters win over those stored with the moments."""
    chosen = hyperparameters(run.optimizer)
    run.restorer.restore(resolution, wanted, run.reporter.leave_curve)
    restore_hyperparameters(run.optimizer, chosen)
    progress = run.progress
    log.info(
        "resumed from %s: step %d of %d, %s tokens, epoch %.2f", resolution.path, progress.step, run.config.max_steps,
        count(progress.tokens), run.loader.epoch_at(progress.sequences),
    )  # fmt: skip


def _warm_up(run: Run) -> None:
    """One forward and backward of the run's shape, thrown away before anything counts.

    It compiles, and it lets DistributedDataParallel settle its gradient buckets, whose
    order after the first backward would otherwise make the first step after a resume sum in another order.
    """
    backend = launch.compile_backend(run.accelerator)
    compiled = (
        "without torch.compile"
        if backend == "no"
        else f"with torch.compile ({backend}), which takes a while the first time"
    )
    log.info("warming up %s", compiled)
    started = time.perf_counter()
    device, config = run.accelerator.device, run.config
    zeros = torch.zeros((config.micro_batch, config.sequence_length), dtype=torch.int64, device=device)
    run.model.train()
    for _ in range(2):
        run.accelerator.backward(run.model(zeros, labels=zeros))
        run.optimizer.zero_grad()
    run.precision.check_warm_up()
    log.info(
        launch.determinism_report(run.accelerator, config.deterministic, run.bare_model.config, config.micro_batch, config.sequence_length)
    )
    log.info("ready after %s", duration(time.perf_counter() - started))


def bits_per_byte(loss: ValidationLoss, num_bytes: int) -> float:
    """Validation loss in bits a byte of text, which compares across tokenizers: loss x tokens / (bytes x ln 2)."""
    return loss.loss * loss.num_tokens / (num_bytes * math.log(2))
