"""What is known of a run from its folder, and which runs are of one recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.config.folders import command_line, find_run
from trainer.config.load import default_settings, read_settings
from trainer.ending.outcome_file import read_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import TrainerError
from trainer.journal import branch_of, precisions, read_events
from trainer.metrics.binned import NUM_BINS, Curve, last_tokens, read_curve
from trainer.metrics.curves import CURVE
from trainer.text import by_dotted_name

_NAMES = ("name", "seed", "runs_folder", "checkpoints_folder", "resume_from_checkpoint")
_BESIDE = ("resume.", "checkpoint.", "metrics.", "evaluation.", "restart.", "hang.", "max_hours", "precision.required")
_ROUNDING = ("micro_batch", "model.gradient_checkpointing", "precision.cache_weights")
_LOOKS = ("precision.statistics_every_steps", "precision.shadow_every_steps")
NOT_THE_RECIPE = (*_NAMES, *_BESIDE, *_ROUNDING, *_LOOKS)
"""Settings (or sections of them) that two runs of one recipe may differ in: the seed, and what changes no more of a step than its rounding."""

_TEXT = ("data.corpus", "data.validation")
_HELD_OUT = (*_TEXT, "data.tokenizer", "data.vocab_size", "evaluation.num_sequences", "sequence_length")


@dataclass(frozen=True)
class Run:
    """One run as its files tell it."""

    name: str
    """Its folder's name, or the whole path where two of the runs have one name."""
    folder: Path
    settings: dict[str, Any]
    """Every setting under its dotted name, the fields of model.config too."""
    outcome: str
    """How it ended, or `running`; `unknown` without an outcome.json."""
    precision: str
    """What it computed in, one after another: `bf16`, or `fp8, then bf16`; `unknown` when nobody wrote it down."""
    processes: str
    """How many processes trained it, launch after launch; `unknown` when nobody wrote it down."""
    machine: str
    """What they computed on, likewise."""
    versions: dict[str, str]
    manifest: Manifest | None
    """The newest checkpoint's, where there is one still."""
    curve: Curve
    branch: tuple[str, int] | None = None
    """The run, and its step, that it is a branch of."""
    initial_weights: dict[str, Any] | None = None
    """Where its weights began, and their digest (run/initial.py); None for random weights."""

    @property
    def has_diverged(self) -> bool:
        """Whether it was ended as diverged, or its loss is no number at the last step."""
        return self.outcome == Outcome.DIVERGED or self.curve.last_finite_tokens < self.curve.last_tokens

    @property
    def recipe(self) -> dict[str, Any]:
        """What makes it this recipe's run: settings that change a step, and the precision; not the seed.

        One that its version did not know yet has today's default, which is what was done before.
        """
        settings = {**default_settings(), **self.settings, "precision": self.precision}
        return {key: value for key, value in settings.items() if not key.startswith(NOT_THE_RECIPE)}


def read_runs(wanted: Sequence[str]) -> list[Run]:
    """The runs by name or folder, each with its curve over the same bins of tokens.

    raises  TrainerError for fewer than two, one that is not there or given twice, or one without a step
    """
    if len(wanted) < 2:
        raise TrainerError(
            f"compare needs two runs at least, by name or folder; try: {command_line('compare', 'A', 'B')}"
        )
    folders = [find_run(run) for run in wanted]
    for (one, folder), (other, its_folder) in combinations(zip(wanted, folders), 2):
        if folder.resolve() == its_folder.resolve():
            raise TrainerError(f"{other} and {one} are one run ({its_folder}); name another run to compare it with")
    lengths = [last_tokens(folder) for folder in folders]
    for run, folder, length in zip(wanted, folders, lengths, strict=True):
        if not length:
            raise TrainerError(
                f"{run} has no step to compare: {folder / CURVE} is absent or has no record of one; let it train for a while first"
            )
    bin_tokens = max(length for length in lengths if length) / NUM_BINS
    names = [folder.resolve().name for folder in folders]
    names = [name if names.count(name) == 1 else str(folder) for folder, name in zip(folders, names)]
    return [_read(folder, name, bin_tokens) for folder, name in zip(folders, names)]


def _read(folder: Path, name: str, bin_tokens: float) -> Run:
    settings = by_dotted_name(read_settings(folder / "config.yaml"))
    events = read_events(folder, "start", "precision", "initial_weights")
    starts = [event for event in events if event["event"] == "start"]
    manifest = _newest_manifest(settings)
    outcome = read_outcome(folder)
    precision = ", then ".join(precisions(events)) or "unknown"
    if manifest and precision == "unknown":
        precision = manifest.precision
    return Run(
        name,
        folder,
        settings,
        outcome["outcome"] if outcome else "unknown",
        precision,
        _one_after_another(starts, "processes"),
        _one_after_another(starts, "machine"),
        manifest.versions if manifest else {},
        manifest,
        read_curve(folder, bin_tokens),
        branch_of(folder),
        _initial_weights(events, manifest),
    )


def _initial_weights(events: list[dict[str, Any]], manifest: Manifest | None) -> dict[str, Any] | None:
    """By the journal, or by the newest checkpoint where the journal has been lost."""
    told = [event for event in events if event["event"] == "initial_weights"]
    return told[-1] if told else manifest.initial or None if manifest else None


def _newest_manifest(settings: dict[str, Any]) -> Manifest | None:
    place, name = settings.get("checkpoints_folder"), settings.get("name")
    if not place or not name:
        return None
    entries = CheckpointStore(files.project_folder() / str(place) / str(name)).entries()
    return next((entry.manifest for entry in entries if entry.manifest), None)


def _one_after_another(starts: list[dict[str, Any]], fact: str) -> str:
    """A fact of every launch, without repetitions: `4, then 8`."""
    values = groupby(str(event[fact]) for event in starts if event.get(fact) is not None)
    return ", then ".join(value for value, _ in values) or "unknown"


def is_one_recipe(a: Run, b: Run) -> bool:
    """Whether two runs differ only in their seed, their names and what changes no step."""
    return a.recipe == b.recipe


def differ_in_seed_alone(a: Run, b: Run) -> bool:
    """Whether nothing but the seed sets two runs apart, as far as is known: then their gap is noise, and measures it."""
    return is_one_recipe(a, b) and a.settings.get("seed") != b.settings.get("seed") and not version_differences([a, b])


def same_vocabulary(a: Run, b: Run) -> bool:
    """Whether nats per token of the two compare: their tokenizers are one."""
    if a.manifest and b.manifest:
        ours, theirs = ((each.identity.get("tokenizer"), each.vocab_size) for each in (a.manifest, b.manifest))
        return ours == theirs
    return _tokenizer(a) == _tokenizer(b)


def _tokenizer(run: Run) -> Any:
    own = run.settings.get("data.tokenizer"), run.settings.get("data.vocab_size")
    return own if any(own) else run.settings.get("data.corpus")


def same_training_data(a: Run, b: Run) -> bool:
    """Whether training losses of the two compare: losses on the same data."""
    if a.manifest and b.manifest:
        return a.manifest.identity.get("training_data") == b.manifest.identity.get("training_data")
    return all(a.settings.get(key) == b.settings.get(key) for key in ("data.corpus", "data.train"))


def same_held_out(a: Run, b: Run) -> bool:
    """Whether validation losses of the two compare: the same held-out tokens, cut in the same way."""
    if a.manifest and b.manifest:
        return a.manifest.validation == b.manifest.validation
    return all(a.settings.get(key) == b.settings.get(key) for key in _HELD_OUT)


def same_text(a: Run, b: Run) -> bool:
    """Whether all of one held-out text was read for both, whatever the tokenizer: then bits per byte of the two compare."""
    whole = all(run.settings.get("evaluation.num_sequences") is None for run in (a, b))
    return whole and all(a.settings.get(key) == b.settings.get(key) for key in _TEXT)


def same_batches(a: Run, b: Run) -> bool:
    """Whether both trained on the same batches, step by step: then what the batches make of the loss cancels in the difference."""
    end = min(a.curve.last_tokens, b.curve.last_tokens)
    ours = {number: last for number, last in a.curve.digests.items() if last[0] <= end}
    theirs = b.curve.digests
    shared = [number for number, last in ours.items() if number in theirs and theirs[number][0] == last[0]]
    are_same = all(ours[number] == theirs[number] and ours[number][1] is not None for number in shared)
    return 2 * len(shared) > len(ours) and are_same


def setting_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with each run's value; None where a run has no such setting."""
    return _differences([run.settings for run in runs], ignored=("name", "runs_folder", "checkpoints_folder"))


def version_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The packages whose versions differ, among the runs whose versions are known."""
    if not all(run.versions for run in runs):
        return {}
    return _differences([run.versions for run in runs])


def _differences(tables: Sequence[dict[str, Any]], ignored: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for values in tables for key in values if key not in ignored)
    rows = {key: [values.get(key) for values in tables] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
