"""What stands in metrics.jsonl under which key, and where TensorBoard draws it: tags, units, meanings, and the order of the charts."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Meaning(NamedTuple):
    """What a number is."""

    unit: str
    help: str


KEYS = {
    "loss": "loss/train",
    "loss_smoothed": "loss/train_smoothed",
    "val_loss": "loss/validation",
    "bits_per_byte": "loss/validation_bits_per_byte",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens": "data/tokens",
    "epoch": "data/epoch",
    "tokens_per_second": "speed/tokens_per_second",
    "step_seconds": "speed/step_seconds",
    "mfu": "speed/mfu",
}
"""Tags of the plain keys of a record. A key with a slash is a tag already; other numbers of an evaluation go under evaluation/."""

MEANINGS = {
    "loss/train": Meaning("nats a token", "mean over the global batch of the step"),
    "loss/train_smoothed": Meaning("nats a token", "the same, as a moving average over about 20 steps"),
    "loss/validation": Meaning("nats a token", "mean over the held-out tokens, the same ones every time and for any number of processes"),
    "loss/validation_bits_per_byte": Meaning("bits a byte", "validation loss of a byte of text: compares across tokenizers"),
    "optim/lr": Meaning("", "learning rate of the first parameter group in this step"),
    "optim/grad_norm": Meaning("", "norm of all gradients before clipping"),
    "data/tokens": Meaning("tokens", "trained on since the run began"),
    "data/epoch": Meaning("passes", "over the training data, all sources alike, since they are mixed"),
    "speed/tokens_per_second": Meaning("tokens/s", "of all processes, without evaluations and saves"),
    "speed/step_seconds": Meaning("s", "a step without evaluations and saves"),
    "speed/mfu": Meaning("0..1", "share of the devices' peak arithmetic that the model's own arithmetic reaches"),
    "precision/fp8_coverage": Meaning("0..1", "share of the matrix products' arithmetic that runs in fp8"),
    "checkpoint/bytes": Meaning("bytes", "size of the newest checkpoint"),
    "checkpoint/write_seconds": Meaning("s", "what writing it took, beside training"),
    "checkpoint/stall_seconds": Meaning("s", "what a save holds training for"),
    "checkpoint/age_seconds": Meaning("s", "since the state of the newest checkpoint on the disk: lost if the machine died now"),
    "promise/worst_loss_seconds": Meaning("s", "the longest training that could have been lost at any moment so far"),
    "promise/overhead_fraction": Meaning("0..1", "share of the time that saving took so far"),
    "resume/exact": Meaning("0 or 1", "whether the steps replayed after a resume were bit-identical"),
}
"""What each tag is; the other modules that measure bring their own."""

LAYOUT: dict[str, dict[str, list[str]]] = {
    "1 Is it learning?": {
        "training loss (nats a token)": ["loss/train", "loss/train_smoothed"],
        "validation loss (nats a token)": ["loss/validation"],
        "bits a byte": ["loss/validation_bits_per_byte"],
        "tasks": ["evaluation/.*acc.*"],
        "learning rate": ["optim/lr"],
    },
    "2 Is it healthy?": {
        "gradient norm": ["optim/grad_norm"],
        "gradient norm by layer group": ["grad_norm/.*"],
        "update to weight by layer group": ["update_ratio/.*"],
        "parameter norm by layer group": ["parameter_norm/.*"],
        "share in fp8": ["precision/fp8_coverage"],
        "fp8: loss above bf16's (fraction)": ["precision/loss_gap"],
        "fp8: rounded to zero, cut off": ["precision/(under|over)flow.*"],
    },
    "3 How fast, how far?": {
        "tokens a second": ["speed/tokens_per_second"],
        "MFU": ["speed/mfu"],
        "where a step's time goes (s)": ["time/.*"],
        "epochs": ["data/epoch"],
    },
    "4 What would be lost?": {
        "promise: longest loss so far, age of the newest checkpoint (s)": ["promise/worst_loss_seconds", "checkpoint/age_seconds"],
        "promise: share of the time": ["promise/overhead_fraction"],
        "a save holds training for (s)": ["checkpoint/stall_seconds"],
        "a write takes (s)": ["checkpoint/write_seconds"],
        "resumes: exact?": ["resume/exact"],
    },
    "5 The machine": {
        "memory of this process (bytes)": ["memory/.*"],
        "GPU utilisation": ["gpu.*/utilisation.*"],
        "GPU power (W)": ["gpu.*/power.*"],
        "GPU temperature (C)": ["gpu.*/temperature.*"],
        "GPU clock": ["gpu.*/.*clock.*"],
        "CPU (percent)": ["host/cpu.*"],
        "free disk (bytes)": ["host/.*disk.*free.*"],
    },
}
"""TensorBoard's Custom Scalars tab: category -> chart -> tags, or patterns of tags, in the order in which a person asks."""


def drawn(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl by tag; a core number that was not finite (null there) is drawn as NaN."""
    is_evaluation = "val_loss" in record
    values = {}
    for key, value in record.items():
        if isinstance(value, bool) or key in ("step", "seconds") or (is_evaluation and key == "tokens"):
            continue
        tag = KEYS.get(key) or (f"evaluation/{key}" if is_evaluation else key if "/" in key else None)
        if tag and isinstance(value, (int, float)):
            values[tag] = float(value)
        elif tag and value is None:
            values[tag] = math.nan
    return values


def guide(*tables: Mapping[str, Meaning | tuple[str, str]]) -> str:
    """A Markdown table of every tag with its unit and its meaning, for TensorBoard's text tab."""
    rows = [f"| `{tag}` | {unit} | {words} |" for table in tables for tag, (unit, words) in sorted(table.items())]
    return "\n".join(("| curve | unit | meaning |", "|---|---|---|", *rows))


def charts_without(tags: set[str]) -> list[str]:
    """Charts of the layout that none of these tags belongs to."""
    return [
        chart
        for charts in LAYOUT.values()
        for chart, patterns in charts.items()
        if not any(re.fullmatch(pattern, tag) for pattern in patterns for tag in tags)
    ]
