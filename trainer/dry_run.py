"""`trainer launch --dry-run`: what a launch of these words would run, and where it would be refused. Nothing is started, no run touched.

Everything is checked that a launch checks before its first step and that needs no other process: words, data, tasks, the model, memory,
disk, and the checkpoint to go on from with all that has changed since (its bytes are read by the launch alone). What may be otherwise at
another place or time (the number of GPUs, a run that is alive) is a note.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer import launcher
from trainer.checkpoint.format.retention import most_kept, policy_of
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume.changes import Change, changes, refusal, settings_of
from trainer.checkpoint.resume.select import Resolution, check_not_beyond, look
from trainer.checkpoint.save.preflight import check_free
from trainer.checkpoint.save.room import expected_bytes
from trainer.config.cluster import lacking_gpus
from trainer.config.folders import checkpoints_folder, resume_point
from trainer.config.load import flatten, kept_settings
from trainer.config.schema import Config
from trainer.data.corpus import Corpus
from trainer.errors import CheckpointError
from trainer.locks import is_trained
from trainer.metrics.curves import CURVE
from trainer.metrics.totals import totals_of
from trainer.metrics.trackers import check_tracker_names
from trainer.model.flops import parameter_counts
from trainer.optim.build import build_optimizer
from trainer.optim.rules import descriptions
from trainer.run.begin import refuse_to_start_over
from trainer.run.identity import describe
from trainer.run.initial import Initial, initial_of, remarks
from trainer.run.memory import check_memory
from trainer.run.prepared import model_of
from trainer.text import count, duration, numbered, table

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Precision:
    """What a launch is expected to compute in, as `describe` asks for it."""

    label: str

    def facts(self) -> dict[str, Any]:
        return {}


def dry_run(request: launcher.Request, say: Say) -> str:
    """What would run, as a table with notes under it and the command at its end.

    say     hears what takes a while
    raises  TrainerError with the words with which the launch would be refused
    """
    checked = launcher.check_request(request)
    config = checked.config
    corpus = launcher.check_data(config)
    say("importing torch, accelerate and transformers")
    check_tracker_names(config.metrics.trackers)
    initial = initial_of(config, corpus, reads=False)
    model = model_of(config, corpus, torch.device("meta"), initial)
    known = (*(each.words for each in checked.hub_settings), *_of_initial(initial))
    notes = [note for note in (lacking_gpus(checked.cluster), _alive(checked), *known) if note]
    if device := _device(checked):
        check_memory(model, device, config, checked.cluster.precision, checked.cluster.num_local_processes)
    store = CheckpointStore(checkpoints_folder(config))
    _check_disk(config, model, store, checked.cluster.num_processes)
    found, changed = _where_from(checked, corpus, model, store)
    step = found.manifest.step if found.manifest else 0
    rows = [
        *_what(checked, corpus, model),
        *([("weights", f"those of {initial.source.name}")] if initial else []),
        ("from", _from(checked, found, changed)),
        *_time_left(checked, step),
        *_changed(checked, changed, step),
        ("folders", f"{checked.folder}, {store.folder}"),
        ("command", shlex.join(checked.command)),
    ]
    return "\n".join([table([(f"{config.name}:", ""), *rows], indent=""), *(f"note: {note}" for note in notes)])


def _of_initial(initial: Initial | None) -> list[str | None]:
    """What a person should know of the model that the run begins from."""
    if initial is None:
        return []
    return [*remarks(initial.facts), initial.likeness.words if initial.likeness else None, initial.unread]


def _alive(checked: launcher.CheckedLaunch) -> str | None:
    words = f"{checked.config.name} is being trained right now, and a launch would be refused as long as it is"
    return words if is_trained(checked.folder) else None


def _device(checked: launcher.CheckedLaunch) -> torch.device | None:
    """What it would compute on here; None where it is for another machine."""
    if checked.cluster.use_cpu or (lacking_gpus(checked.cluster) is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    return None if lacking_gpus(checked.cluster) else torch.device("cuda", 0)


def _check_disk(config: Config, model: torch.nn.Module, store: CheckpointStore, num_processes: int) -> None:
    """Refuses what does not fit on the disk; nothing is written."""
    has_twins = num_processes > 1 and config.safety.digest_every_steps > 0
    policy = policy_of(config.checkpoint, config.safety.rollback.max, keep_agreed=int(has_twins))
    there = sum(manifest.num_bytes for manifest in store.sound_manifests())
    folder = next(path for path in (store.folder, *store.folder.parents) if path.is_dir())
    one = sum(expected_bytes(model, build_optimizer(model, config.optimizer)))
    num_kept = most_kept(policy, config.max_steps, has_copies=bool(config.checkpoint.mirror))
    check_free(folder, one, num_kept=num_kept, there_bytes=there, max_disk_bytes=policy.max_disk_bytes)


def _where_from(
    checked: launcher.CheckedLaunch, corpus: Corpus, model: torch.nn.Module, store: CheckpointStore
) -> tuple[Resolution, list[Change]]:
    """The checkpoint that it would go on from, and what has changed since; raises CheckpointError where that is refused."""
    config, wanted = checked.config, resume_point(checked.config)
    found = look(store, wanted)
    if found.manifest is None:
        if wanted == "latest":
            refuse_to_start_over(config, checked.folder)
        return found, []
    check_not_beyond(checked.folder, found.manifest.step, config.max_steps)
    asked = checked.cluster.precision
    label = found.manifest.precision if found.manifest.precision.partition(" ")[0] == asked else asked
    present = describe(config, corpus, model, lambda: _Precision(label))
    assert found.path is not None, "a manifest was read there"
    changed = changes(found.manifest, settings_of(found.path), present, checked.cluster.num_processes)
    if problem := refusal(changed, present.allowed_changes):
        raise CheckpointError(f"{found.path} cannot be continued by this run: {problem}")
    return found, changed


def _what(checked: launcher.CheckedLaunch, corpus: Corpus, model: torch.nn.Module) -> list[tuple[str, str]]:
    """The model, the data, a step, and the whole run."""
    config, cluster = checked.config, checked.cluster
    parameters, processes = parameter_counts(model), cluster.num_processes
    step_tokens = config.global_batch * config.sequence_length
    accumulated = config.global_batch // (config.micro_batch * processes)
    epochs = config.max_steps * config.global_batch / corpus.train.num_sequences
    held_out = f"{count(corpus.validation.num_sequences)} held out" if corpus.validation else "none held out"
    arithmetic = "fp32" if cluster.precision == "no" else cluster.precision
    places = "on CPUs" if cluster.use_cpu else "on GPUs" if processes > 1 else "on a GPU"
    train, length = count(corpus.train.num_sequences), config.sequence_length
    each = f"{config.micro_batch} at once on each process, {accumulated} times"
    steps, tokens = numbered(config.max_steps, "step"), count(step_tokens * config.max_steps)
    return [
        ("cluster", f"{cluster.path.stem}: {numbered(processes, 'process')} {places}, {arithmetic}"),
        ("model", f"{model.config.model_type}, {parameters.words}"),
        *(("groups", line) for line in descriptions(model, config.optimizer)),
        ("data", f"{train} sequences of {length} tokens to train on, {held_out}"),
        ("a step", f"{config.global_batch} sequences = {count(step_tokens)} tokens: {each}"),
        ("the run", f"{steps}, {tokens} tokens, {epochs:.3g} epochs"),
    ]


def _from(checked: launcher.CheckedLaunch, found: Resolution, changed: list[Change]) -> str:
    """Where it would begin; that a finished run has nothing to do."""
    if launcher.is_finished(checked):
        return f"nothing would run: {launcher.finished_words(checked)}"
    if found.manifest is None:
        return "the beginning: there is no checkpoint"
    left = checked.config.max_steps - found.manifest.step
    return f"step {found.manifest.step} ({found.path}), {numbered(left, 'step')} to go; a launch reads every byte of it first"


def _time_left(checked: launcher.CheckedLaunch, step: int) -> list[tuple[str, str]]:
    """How long it would take, where this run has shown how fast it is."""
    speed = totals_of(checked.folder / CURVE).tokens_per_second
    tokens = (checked.config.max_steps - step) * checked.config.global_batch * checked.config.sequence_length
    if not speed or tokens <= 0:
        return []
    return [("takes", f"about {duration(tokens / speed)} at the {count(speed)} tokens/s of its last steps")]


def _changed(checked: launcher.CheckedLaunch, since_checkpoint: list[Change], step: int) -> list[tuple[str, str]]:
    """What is not as it was in the last launch, and in the checkpoint."""
    kept = checked.folder / "config.yaml"
    before: Mapping[str, Any] = kept_settings(kept) if kept.is_file() else {}
    now = flatten(checked.config)
    other = [key for key, value in now.items() if key in before and before[key] != value]
    settings = [Change(key, before[key], now[key]).words for key in other]
    rows = [("changed", f"since the last launch: {', '.join(settings) or 'no setting'}")] if before else []
    rest = [change.words for change in since_checkpoint if change.words not in settings]
    return rows + ([("changed", f"since step {step}: {', '.join(rest)}")] if rest else [])
