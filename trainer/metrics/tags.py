"""What stands in metrics.jsonl under which key, and where TensorBoard draws it: tags, units, meanings, and the order of the charts."""

import math
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any, NamedTuple

from trainer.aliases import former_tag, tag_in_trackers

KEYS = {
    "loss": "Loss/train",
    "loss_smoothed": "Loss/train_smoothed",
    "val_loss": "Loss/validation",
    "bits_per_byte": "Loss/validation_bits_per_byte",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens": "data/tokens",
    "epoch": "data/epoch",
    "tokens_per_second": "Speed/tokens_per_second",
    "step_seconds": "Speed/step_seconds",
    "mfu": "Speed/mfu",
}
"""Tags of the plain keys of a record. A key with a slash is a tag already; other numbers of an evaluation go under evaluation/."""

MEANINGS = {
    "Loss/train": ("nats per token", "mean over the global batch of the step"),
    "Loss/train_smoothed": ("nats per token", "the same, as a moving average over about 20 steps"),
    "Loss/validation": (
        "nats per token",
        "mean over the held-out tokens, the same ones every time and for any number of processes",
    ),
    "Loss/validation_bits_per_byte": ("bits per byte", "validation loss of a byte of text: compares across tokenizers"),
    "optim/lr": ("", "learning rate of the first parameter group in this step"),
    "optim/lr/GROUP": ("", "the same of an entry of optimizer.groups, and GROUP_muon of Muon's matrices in it"),
    "optim/grad_norm": ("", "norm of all gradients before clipping"),
    "data/tokens": ("tokens", "trained on since the run began"),
    "data/epoch": ("passes", "over the training data, all sources alike, since they are mixed"),
    "Speed/tokens_per_second": ("tokens/s", "of all processes, without evaluations and saves"),
    "Speed/step_seconds": ("s", "a step without evaluations and saves"),
    "Speed/slowdown": (
        "times",
        "median step of the last 60 seconds (20 steps at least) over the best such median of the launch; 1 is as fast as ever",
    ),
    "Speed/mfu": (
        "0..1",
        "share of the devices' peak arithmetic that the model's own arithmetic reaches; under fp8 it is fp8's peak for all of it",
    ),
    "precision/fp8_coverage": ("0..1", "share of the matrix products' arithmetic that runs in fp8"),
    "checkpoint/bytes": ("bytes", "size of the newest checkpoint"),
    "checkpoint/write_seconds": ("s", "what writing it took, beside training"),
    "checkpoint/stall_seconds": ("s", "what a save holds training for"),
    "checkpoint/age_seconds": (
        "s",
        "since the state of the newest checkpoint on the disk: lost if the machine died now",
    ),
    "checkpoint/worst_lost_work_seconds": (
        "s",
        "the longest training that a crash could have lost at any moment so far",
    ),
    "checkpoint/overhead_fraction": ("0..1", "share of the time that saving took so far"),
    "disk/days_until_full": (
        "days",
        "until the disk of the checkpoints is full, by what is kept for good or by what was measured",
    ),
    "resume/exact": ("0 or 1", "whether the steps replayed after a resume were bit-identical"),
}
"""Tag -> (unit, help); the other modules that measure bring their own."""

COUNTERS = frozenset({"data/tokens", "data/epoch", "Loss/train_smoothed", "optim/lr"})
"""Tags of which the last of some steps is drawn where they are drawn as one point; of others it is the mean."""


def is_counter(tag: str) -> bool:
    """Whether the last of some steps is drawn of a tag where they are drawn as one point, and not their mean."""
    return tag in COUNTERS or tag.startswith("optim/lr/")


EXTREMES = ("Loss/train", "optim/grad_norm", "Speed/step_seconds")
"""Tags of which the least and the greatest are drawn too, as TAG_min and TAG_max."""

for _tag, (_which, _word) in product(EXTREMES, (("min", "least"), ("max", "greatest"))):
    _help = f"the {_word} of the steps that one point of {_tag} stands for (after step 20,000)"
    MEANINGS[f"{_tag}_{_which}"] = (MEANINGS[_tag][0], _help)

MFU, VALIDATION, TASKS, GPU = "mfu", "validation", "tasks", "gpu"
EXPERTS = "experts"
FP8, FP8_FIT, FP8_GAP = "fp8", "fp8_fit", "fp8_gap"
"""What not every run has; a chart that needs it is left out of the others, for an empty chart looks like a fault."""


class Chart(NamedTuple):
    """A chart of the Custom Scalars tab."""

    title: str
    tags: tuple[str, ...]
    """Whole tags, as regular expressions."""
    needs: str | None = None


CHARTS: dict[str, tuple[Chart, ...]] = {
    "1 Is it learning?": (
        Chart("training loss (nats per token)", ("Loss/train", "Loss/train_smoothed", "Loss/train_(min|max)")),
        Chart("validation loss (nats per token)", ("Loss/validation",), VALIDATION),
        Chart("validation (bits per byte)", ("Loss/validation_bits_per_byte",), VALIDATION),
        Chart("tasks (share right)", ("evaluation/.*/acc.*",), TASKS),
        Chart("learning rate", ("optim/lr", "optim/lr/.*")),
    ),
    "2 Is it healthy?": (
        Chart("gradient norm", ("optim/grad_norm", "optim/grad_norm_max")),
        Chart("gradient norm by layer group", ("grad_norm/.*",)),
        Chart("update to weight by layer group", ("update_ratio/.*",)),
        Chart("weight norm by layer group", ("param_norm/.*",)),
        Chart("experts: auxiliary loss of the routers (even load: experts a token)", ("router/aux_loss",), EXPERTS),
        Chart("experts: least and most loaded (fraction of tokens)", ("router/load_(least|most)/.*",), EXPERTS),
        Chart("experts: entropy of the load (0..1, even load: 1)", ("router/load_entropy/.*",), EXPERTS),
        Chart("fp8: share of the arithmetic (0..1)", ("precision/fp8_coverage",), FP8),
        Chart("fp8: underflow and overflow (share)", ("precision/(under|over)flow_.*",), FP8_FIT),
        Chart("fp8: largest value that went into a layer", ("precision/amax_input/.*",), FP8_FIT),
        Chart("fp8: largest weight", ("precision/amax_weight/.*",), FP8_FIT),
        Chart("fp8: loss above bf16's (fraction)", ("precision/loss_gap",), FP8_GAP),
    ),
    "3 How fast, how far?": (
        Chart("tokens per second", ("Speed/tokens_per_second",)),
        Chart("MFU (0..1)", ("Speed/mfu",), MFU),
        Chart("where a step's time goes (s)", ("time/.*",)),
        Chart("epochs", ("data/epoch",)),
    ),
    "4 What would be lost?": (
        Chart(
            "most work that could have been lost so far, age of the newest checkpoint (s)",
            ("checkpoint/worst_lost_work_seconds", "checkpoint/age_seconds"),
        ),
        Chart("share of the time that saving took", ("checkpoint/overhead_fraction",)),
        Chart("a save holds training for (s)", ("checkpoint/stall_seconds",)),
        Chart("writing takes (s)", ("checkpoint/write_seconds",)),
    ),
    "5 The machine": (
        Chart("memory of this process (bytes)", ("memory/.*",)),
        Chart("GPU utilization (0..1)", ("gpu/utilization_fraction/.*",), GPU),
        Chart("GPU power (W)", ("gpu/power_watts/.*",), GPU),
        Chart("GPU temperature (C)", ("gpu/temperature_celsius/.*",), GPU),
        Chart("GPU clock (Hz)", ("gpu/sm_clock_hertz/.*",), GPU),
        Chart("GPU slowed down by heat or power (0 or 1)", ("gpu/slowed_by.*",), GPU),
        Chart("processors in use (0..1)", ("host/cpu_fraction",)),
        Chart("memory of the machine that is left (bytes)", ("host/available_memory_bytes",)),
        Chart("free disk (bytes)", ("disk/free_bytes/.*",)),
    ),
}
"""TensorBoard's Custom Scalars tab: categories of charts in the order in which a person asks."""


def layout(features: Collection[str]) -> dict[str, dict[str, list[Any]]]:
    """The charts of a run that has these features, in the form of `SummaryWriter.add_custom_scalars`; former names are drawn too."""
    return {
        category: {each.title: _lines(each) for each in charts if each.needs is None or each.needs in features}
        for category, charts in CHARTS.items()
    }


def _lines(chart: Chart) -> list[Any]:
    return ["Multiline", [f"^{tag}$" for tag in dict.fromkeys([*chart.tags, *map(former_tag, chart.tags)])]]


def drawn(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl by tag; a core number that was not finite (null there) is drawn as NaN."""
    is_evaluation = "val_loss" in record
    values = {}
    for key, value in record.items():
        if isinstance(value, bool) or key in ("step", "seconds") or (is_evaluation and key == "tokens"):
            continue
        tag = KEYS.get(key) or (f"evaluation/{key}" if is_evaluation else tag_in_trackers(key) if "/" in key else None)
        if tag and isinstance(value, (int, float)):
            values[tag] = float(value)
        elif tag and value is None:
            values[tag] = math.nan
    return values


def guide(*tables: Mapping[str, tuple[str, str]]) -> str:
    """A Markdown table of every tag with its unit and its meaning, for TensorBoard's text tab."""
    rows = [f"| `{tag}` | {unit} | {words} |" for table in tables for tag, (unit, words) in sorted(table.items())]
    return "\n".join(("| curve | unit | meaning |", "|---|---|---|", *rows))
