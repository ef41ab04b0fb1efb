"""Where a run continues from: found, warmed up, restored, and told."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer import determinism, files
from trainer.checkpoint.format.carried import TOKENIZER, replaced, take_along
from trainer.checkpoint.mirror.worker import mirror_settings
from trainer.checkpoint.resume.changes import markdown, settings_of
from trainer.checkpoint.resume.diverged import never_went_well
from trainer.checkpoint.resume.select import Resolution
from trainer.config.folders import checkpoints_folder, command_line, resume_point, typed
from trainer.config.load import dump, flatten
from trainer.config.schema import Config
from trainer.data.hugging_face import keep
from trainer.errors import CheckpointError
from trainer.journal import JOURNAL, Journal, branch_of, read_events
from trainer.launch.accelerator import compute_dtype, device_words, seed_streams, wait_for_device
from trainer.launch.compile_choice import compile_backend
from trainer.metrics.curves import CURVE
from trainer.metrics.expert_load import TAGS as LOAD
from trainer.metrics.hardware import TAGS as MACHINE
from trainer.metrics.probes import HISTOGRAM_TAGS, PROBES
from trainer.metrics.reporter import SAVED
from trainer.metrics.stopwatch import TAGS as TIMES
from trainer.metrics.tags import MEANINGS, guide
from trainer.precision.statistics import FP8_MEANINGS
from trainer.run.build import Run, build_run
from trainer.run.compare_digests import begin_digests
from trainer.run.go_back import learn_rollbacks
from trainer.run.health import check_health
from trainer.run.identity import branch_words, facts_of_checkpoint, fingerprint, versions
from trainer.safety.requests import Requests
from trainer.text import count, duration

log = logging.getLogger(__name__)

LONG_SECONDS = 3600.0
"""A run of which so much is left is a long one."""


def begin_run(config: Config, requests: Requests) -> Run:
    """Builds a run and brings it to where it stands: freshly started, or restored from a checkpoint."""
    run = build_run(config, requests)
    try:
        _bring_to_its_place(run)
    except BaseException:
        run.reporter.abandon()
        raise
    return run


def _bring_to_its_place(run: Run) -> None:
    """Finds where to continue from, warms the model up, and restores it; or starts fresh, and says so."""
    config, lacking = run.config, [name for name in (CURVE, JOURNAL) if not (run.folder / name).is_file()]
    if run.accelerator.is_main_process:
        processes, is_compiled = run.accelerator.num_processes, compile_backend(run.accelerator) != "no"
        facts = {"fingerprint": fingerprint(config, processes), "processes": processes}
        facts |= {**run.precision.record.start_facts(), "compiled": is_compiled}
        Journal(run.folder).write("start", **facts, machine=device_words(run.accelerator))
    wanted = resume_point(config)
    log.info("looking for a checkpoint to go on from; every byte of it is read")
    resolution = run.restorer.find(wanted)
    if resolution.path is None and wanted == "latest":
        refuse_to_start_over(run.config, run.folder)
    run.checkpointer.check_room(resolution.path)
    if run.accelerator.is_main_process:
        _make_folders(run)
    step_seconds = warm_up(run)
    check_health(run)
    resumed_step, assumed = None, {}
    if resolution.path is None:
        seed_streams(config.seed, run.accelerator.process_index)
        _tell_initial(run)
        log.info("a fresh start: the run has no checkpoints%s", "" if wanted == "none" else " yet")
    else:
        resumed_step, assumed = resolution.found()[1].step, _told_by(resolution)
        _restore(run, resolution, wanted)
        begins_here = branch_of(run.folder) is not None and lacking == [CURVE]
        if begins_here:
            log.info("a branch of %s: its curves begin here", branch_words(run.folder))
        elif lacking and resolution.path.parent.resolve() == checkpoints_folder(config).resolve():
            _tell_lost_history(run, lacking)
        offer_selftest(run, resumed_step, step_seconds)
    learn_rollbacks(run, resumed_step)
    begin_digests(run, resumed_step)
    probes = {probe.tag: (probe.unit, probe.help) for probe in PROBES.values()}
    curves = {"run/curves": guide(MEANINGS, TIMES, probes, HISTOGRAM_TAGS, LOAD, MACHINE, FP8_MEANINGS)}
    run.reporter.open(_hyperparameters(run), resumed_step, _texts(run), curves, assumed)
    run.checkpointer.begin(resumed_step)


def _tell_initial(run: Run) -> None:
    """Writes down where the weights of a run that begins come from."""
    facts = run.bare_model.initial
    if facts and run.initial is not None and run.initial.has_begun:
        raise CheckpointError(
            f"the checkpoints of {run.config.name} cannot be gone on from any more, and {facts['source']}, where its weights began, was not read; "
            "start it again"
        )
    if facts and run.accelerator.is_main_process:
        told = ("source", "revision", "digest", "dtype", "rows_added", "tokenizer", "changed")
        Journal(run.folder).write("initial_weights", **{name: facts[name] for name in told})


def _tell_lost_history(run: Run, lacking: Sequence[str]) -> None:
    """The run's own checkpoint is there, and what runs/NAME held of the steps before is not: that is said, for nobody else would."""
    if not run.accelerator.is_main_process:
        return
    step = run.progress.step
    Journal(run.folder).write("lost_history", step=step, lacking=list(lacking))
    log.warning(
        f"{run.folder} lacks {' and '.join(lacking)}, which earlier launches wrote: the history up to step {step} is lost. The curves begin "
        "after it, no step of before can be compared, and why launches ended is not known any more; weights and moments are whole. Put the "
        "folder back to have it again"
    )


def _told_by(resolution: Resolution) -> dict[str, Any]:
    """What decides about the bits of a step, as far as the checkpoint tells it."""
    path, manifest = resolution.found()
    return facts_of_checkpoint(manifest, settings_of(path))


def _hyperparameters(run: Run) -> dict[str, Any]:
    """The settings that a person compares runs by: what shapes the result and the speed, without what only looks after the run."""
    sections = ("checkpoint.", "metrics.", "evaluation.", "profile.", "precision.")
    aside = (*sections, "restart.", "hang.", "checkpoints_folder", "runs_folder", "resume_from_checkpoint", "name")
    given = {key: value for key, value in flatten(run.config).items() if value not in (None, "", [], {})}
    shown = {key: value for key, value in given.items() if not key.startswith(aside)}
    return {**shown, **run.precision.record.settings, "processes": run.accelerator.num_processes}


def _texts(run: Run) -> dict[str, str]:
    """What TensorBoard's text tab says of this launch, as Markdown by tag."""
    step, changed = run.progress.step, run.restorer.changes
    branch = branch_words(run.folder)
    return {
        **({"run/branch": f"a branch of {branch}, where its curves begin"} if branch else {}),
        **({"run/changes": markdown(changed, step)} if changed else {}),
        "run/config": f"```yaml\n{dump(run.config)}```",
        "run/precision": run.precision.record.words,
        "run/versions": "\n".join(f"- {name} {number}" for name, number in versions(run.config.plugins).items()),
    }


def _make_folders(run: Run) -> None:
    """The run's folders, and its config.yaml: from here on it is a run; CheckpointError where nothing can be written."""
    folder = checkpoints_folder(run.config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "fix that, or set checkpoints_folder to another place"
        raise CheckpointError(f"{folder} cannot be made ({error.strerror}); {remedy}") from None
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.initial is not None:
        take_along(*run.initial.files, run.folder)
    with replaced(run.folder, TOKENIZER) as folder:
        if run.corpus.tokenizer and run.corpus.tokenizer.files:
            keep(run.corpus.tokenizer, folder)
    files.write_atomic(run.folder / "config.yaml", dump(run.config))


def refuse_to_start_over(config: Config, folder: Path) -> None:
    """The run had checkpoints, and they are gone: starting over would bury what they were, unless all that it ever had have diverged."""
    if (folder / SAVED).exists() and not never_went_well(read_events(folder)):
        place = mirror_settings(config.checkpoint, folder.name)
        command = command_line("checkpoints", "fetch", typed(folder), "--checkpoint", "latest")
        fetch = f"bring one back: {command} (from {place.where}), " if place else ""
        raise CheckpointError(
            f"{folder.name} has saved checkpoints before, but {checkpoints_folder(config)} holds none; put them back (is the disk "
            f"mounted?), {fetch}or start over on purpose with resume_from_checkpoint=none"
        )


def _restore(run: Run, resolution: Resolution, wanted: str) -> None:
    """Loads the checkpoint, and says from where and what has changed since."""
    log.info("restoring %s", resolution.path)
    run.restorer.restore(resolution, wanted, run.reporter.leave_curve)
    progress, max_steps = run.progress, run.config.max_steps
    how_far = f"step {progress.step} of {max_steps}, {count(progress.tokens)} tokens"
    log.info("resumed from %s: %s, epoch %.2f", resolution.path, how_far, run.loader.epoch_at(progress.sequences))
    run.restorer.tell_changes()


def offer_selftest(run: Run, step: int, step_seconds: float) -> None:
    """Where a long run goes on with other versions than before, says how to prove beforehand that a resume is exact with them."""
    versions_changed = [change.words for change in run.restorer.changes if change.is_version]
    seconds_left = (run.config.max_steps - step) * step_seconds
    if versions_changed and seconds_left >= LONG_SECONDS:
        command = command_line("selftest", str(run.folder / "config.yaml"))
        log.warning(
            f"{', '.join(versions_changed)} since step {step}, and about {duration(seconds_left)} of training are left: whether a resume is exact "
            f"with these versions, a short run proves before (stop this one for that): {command}"
        )


def warm_up(run: Run) -> float:
    """One forward and backward of the run's shape, thrown away before anything counts; returns about how long a step will take, in seconds.

    It compiles, and it lets DistributedDataParallel settle its gradient buckets, whose
    order after the first backward would otherwise make the first step after a resume sum in another order.
    """
    backend = compile_backend(run.accelerator)
    compiled = f"with torch.compile ({backend}), which takes a while the first time"
    log.info("warming up %s", "without torch.compile" if backend == "no" else compiled)
    started = time.perf_counter()
    device, config = run.accelerator.device, run.config
    zeros = torch.zeros((config.micro_batch, config.sequence_length), dtype=torch.int64, device=device)
    run.model.train()

    def one_pass() -> None:
        run.accelerator.backward(run.model(zeros, labels=zeros))
        run.optimizer.zero_grad()

    for _ in range(2):
        began = time.perf_counter()
        one_pass()
        wait_for_device(device)
        pass_seconds = time.perf_counter() - began
    run.precision.check_warm_up()
    shape = (config.micro_batch, config.sequence_length)
    dtype = compute_dtype(run.accelerator)
    log.info(determinism.report(config.deterministic, device, dtype, run.bare_model.config, *shape, one_pass))
    log.info("ready after %s", duration(time.perf_counter() - started))
    return pass_seconds * run.loader.accumulation
