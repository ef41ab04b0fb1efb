"""Part `first`: the first visit to a GPU. Is what is shipped exact there, how fast is it, and what does the host wait for?

GPT-2 124M on the embedded text, through the shipped cluster file of one GPU as it is: accelerate launch, NCCL, DistributedDataParallel,
compiled blocks, `deterministic: true`, sequences of 1,024 tokens. What the code says of a GPU was read and never run, and README.md here has
a table of what that reading leaves open: a figure that misses its bar names the rows that it points to.
"""

import functools
import gzip
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.gpu import syncs
from tests.gpu.record import Record
from tests.gpu.runs import Scene, cleared, killed_and_resumed, model_of, recipe_of, train
from tests.launching import steps
from trainer import determinism

GPT2 = {"corpus": "shakespeare", "train": [], "validation": [], "tokenizer": "gpt2"}

LEAST_MFU = 0.38
"""Of GPT-2 124M in bf16 on one H200, by arithmetic: 40 to 41 % with one kernel in the head and determinism, 36 to 38 % with its passes."""

MAX_SORT_SHARE = 0.01

PASS_OF_THE_HEAD = "softmaxforward"
"""In the name of the kernel by which the head's passes take log-probabilities; attention has none of its own."""

MAX_GRAPHS = 4
"""Of a block, forward and backward, in training; one more of each where something is recomputed."""


class Course(NamedTuple):
    """The steps of a run that is timed."""

    max_steps: int
    profiled: tuple[int, int]
    settled: int
    """From this step on nothing is compiled or profiled any more."""
    save_at: int


ON_GPU, EMULATED = Course(40, (20, 22), 23, 30), Course(10, (3, 3), 4, 6)


class Verdict(NamedTuple):
    """A figure beside its bar, and the rows of README.md's table that a miss points to."""

    name: str
    value: Any
    bar: str
    held: bool
    rows: str

    def note(self, record: Record) -> None:
        record.check(
            self.name,
            self.value,
            self.bar if self.held else f"{self.bar}; a miss points to {self.rows} of tests/gpu/README.md",
            held=self.held,
        )


def measure(scene: Scene, record: Record) -> None:
    """Quick answers first; each piece is judged by itself, and the speed by all that may explain it."""
    attention = record.piece("attention", functools.partial(_attention, scene))
    waits = record.piece("waits", functools.partial(_waits, scene))
    run = record.piece("run", functools.partial(_run, scene, deterministic=True))
    resume = record.piece("resume", functools.partial(_resume, scene))
    free = record.piece("run, deterministic: false", functools.partial(_run, scene, deterministic=False))
    found = {"attention": attention, "waits": waits, "run": run, "resume": resume, "free": free}
    for verdict in judge({name: piece for name, piece in found.items() if piece}, emulated=scene.emulated):
        verdict.note(record)


# What is judged


def judge(found: Mapping[str, dict[str, Any]], *, emulated: bool = False) -> list[Verdict]:
    """What the pieces that could be measured come to; an emulation is held to what a CPU can have."""
    verdicts: list[Verdict] = []
    if attention := found.get("attention"):
        exact = attention["strict_is_exact"]
        verdicts.append(
            Verdict("attention's backward is exact as `deterministic` asks for it", exact, "true", exact, "row 1")
        )
        verdicts.append(
            Verdict(
                "and as it was asked for before (warnings only)", attention["warn_only_is_exact"], "no bar", True, ""
            )
        )
    if waits := found.get("waits"):
        number = sum(waits["waits"].values())
        verdicts.append(
            Verdict("waits of the host in three steps", number, "0", number == 0, rows_of_waits(waits["waits"]))
        )
    if resume := found.get("resume"):
        wrong = [what for what, held in resume["holds"].items() if not held]
        value = f"not so: {', '.join(wrong)}" if wrong else "bit-identical"
        verdicts.append(
            Verdict("killed and resumed, bf16 and compiled", value, "bit-identical", not wrong, "rows 1, 3 and 9")
        )
    if run := found.get("run"):
        verdicts += _judge_run(run, found, emulated)
    return verdicts


def _judge_run(run: dict[str, Any], found: Mapping[str, dict[str, Any]], emulated: bool) -> list[Verdict]:
    late = run["fastest_after_pause"] > 0.5 and run["largest_mfu"] < 1.0
    verdicts = [
        Verdict(
            "fastest step after a pause, over the median",
            run["fastest_after_pause"],
            "above 0.5, and no MFU above 1",
            late or emulated,
            "row 5",
        ),
        Verdict(
            "the way of the head",
            run["head"],
            "one compiled kernel",
            "one compiled kernel" in (run["head"] or "") or emulated,
            "row 2",
        ),
        Verdict(
            "passes over the logits in a training step", run["passes"], "none", not run["passes"] or emulated, "row 2"
        ),
        Verdict(
            "compiled graphs of a block",
            run["graphs"],
            f"1 to {MAX_GRAPHS}",
            0 < run["graphs"] <= MAX_GRAPHS or emulated,
            "row 6",
        ),
        Verdict(
            "share of sorting kernels",
            run["sort_share"],
            f"at most {MAX_SORT_SHARE:.0%}",
            run["sort_share"] <= MAX_SORT_SHARE,
            "row 3",
        ),
    ]
    misses = [verdict.rows for verdict in verdicts if not verdict.held]
    if waits := found.get("waits", {}).get("waits"):
        misses.append(rows_of_waits(waits))
    slow = run["mfu"] is not None and run["mfu"] < LEAST_MFU
    misses = [row for row in misses if row != "row 2"]
    rows = f"{', '.join(misses)}, and row 2" if misses else "row 2 (the head: see the operators)"
    verdicts.append(Verdict("MFU of GPT-2 124M", run["mfu"], f"at least {LEAST_MFU:.0%}", not slow or emulated, rows))
    if free := found.get("free"):
        price = run["step_seconds"] / free["step_seconds"] - 1.0
        verdicts.append(Verdict("what deterministic: true costs of a step", price, "no bar: the price", True, ""))
        verdicts.append(Verdict("MFU with deterministic: false", free["mfu"], "no bar", True, ""))
    return verdicts


def rows_of_waits(waits: Mapping[str, int]) -> str:
    """The rows that places which wait point to."""
    known = {
        "masking_utils": "row 4",
        "model/head": "row 3",
        "optim/": "row 11",
        "reporter": "row 5",
        "late.py": "row 5",
    }
    rows = {row for place in waits for part, row in known.items() if part in place}
    unknown = [place for place in waits if not any(part in place for part in known)]
    return ", ".join([*sorted(rows), *unknown]) or "no row"


# What is measured


def _attention(scene: Scene) -> dict[str, Any]:
    """Attention's backward several times on the same values, asked for in both ways."""
    shape, device = scene.sized((32, 12, 1024, 64), (1, 2, 64, 16)), torch.device(scene.device_type)
    query, upstream = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))

    def is_exact(*, warn_only: bool) -> bool:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        gradients = []
        for _ in range(scene.sized(6, 2)):
            own = query.clone().requires_grad_()
            torch.nn.functional.scaled_dot_product_attention(own, own, own, is_causal=True).backward(upstream)
            gradients.append(own.grad)
        return all(torch.equal(gradients[0], other) for other in gradients[1:])

    try:
        found: dict[str, Any] = {
            "warn_only_is_exact": is_exact(warn_only=True),
            "strict_is_exact": is_exact(warn_only=False),
        }
        if not scene.emulated:
            on, off = determinism.attention_seconds(shape, torch.bfloat16, device)
            found |= {"milliseconds_strict": 1e3 * on, "milliseconds_free": 1e3 * off}
    finally:
        torch.use_deterministic_algorithms(False)
    return found


def _precision(scene: Scene) -> str:
    """What is shipped for a GPU; a CPU goes through the code in what it is fast in."""
    return scene.sized("bf16", "no")


def _recipe(scene: Scene, name: str, max_steps: int, *, batch: int, micro_batch: int, **changes: Any) -> Path:
    on_gpu = {"sequence_length": 1024, "data": GPT2, "global_batch": batch, "micro_batch": micro_batch}
    evaluation = {"every_steps": max_steps, "num_sequences": 8, "sample_tokens": 0}
    model = model_of(scene, "gpt2", 768, 12)
    return recipe_of(
        scene, f"first {name}", model, max_steps, evaluation=evaluation, **{**scene.sized(on_gpu, {}), **changes}
    )


def _waits(scene: Scene) -> dict[str, Any]:
    """Three steps of two micro-batches in which torch tells each wait."""
    path = _recipe(scene, "waits", syncs.LAST + 3, batch=16, micro_batch=8)
    seen = path.parent / "waits.json"
    train(scene, path, precision=_precision(scene), syncs=seen)
    return cleared(path, json.loads(seen.read_text()))


def _run(scene: Scene, *, deterministic: bool) -> dict[str, Any]:
    """Steps of two micro-batches of 32 sequences, some of them profiled, with a save in between."""
    course = scene.sized(ON_GPU, EMULATED)
    path = _recipe(
        scene,
        f"deterministic {deterministic}",
        course.max_steps,
        batch=64,
        micro_batch=32,
        deterministic=deterministic,
        profile={"steps": list(course.profiled)},
        checkpoint={"every_steps": course.save_at},
    )
    said = train(scene, path, precision=_precision(scene))
    profile = path.parent / "runs" / "tiny" / "profile"
    found = {
        **speed_of(steps(path), course),
        **profile_of(profile),
        "told": [line for line in said.splitlines() if "deterministic: " in line],
    }
    found["head"] = next(
        (line.partition("head and loss: ")[2] for line in said.splitlines() if "head and loss: " in line), None
    )
    found["operators"] = [
        line for file in profile.glob("*.operators.txt") for line in file.read_text().splitlines()[:40]
    ]
    return cleared(path, found)


def speed_of(records: list[dict[str, Any]], course: Course) -> dict[str, Any]:
    """Medians of the steps that are like the others, and how those after the save compare."""
    pause = range(course.save_at, course.save_at + 3)
    alike = [record for record in records if record["step"] > course.settled and record["step"] not in pause]
    after = [record["step_seconds"] for record in records if record["step"] in pause[1:]]
    seconds = statistics.median(record["step_seconds"] for record in alike)
    mfus = [record["mfu"] for record in alike if "mfu" in record]
    return {
        "step_seconds": seconds,
        "tokens_per_second": statistics.median(record["tokens_per_second"] for record in alike),
        "mfu": statistics.median(mfus) if mfus else None,
        "largest_mfu": max((record.get("mfu", 0.0) for record in records), default=0.0),
        "fastest_after_pause": min(after) / seconds,
        "parts": {
            part: statistics.median(record[part] for record in alike if part in record)
            for part in sorted({tag for record in alike for tag in record if tag.startswith("time/")})
        },
    }


def profile_of(folder: Path) -> dict[str, Any]:
    """What the trace tells: the busiest kernels in microseconds, the share of those that sort, how many compiled graphs ran, the head's passes."""
    kernels: dict[str, float] = {}
    graphs = set()
    for path in folder.glob("*.trace.json.gz"):
        for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
            name = event.get("name", "")
            if event.get("cat") == "kernel":
                kernels[name[:120]] = kernels.get(name[:120], 0.0) + event["dur"]
            if "CompiledFxGraph" in name:
                graphs.add(name)
    sorting = sum(
        time
        for name, time in kernels.items()
        if any(word in name.lower() for word in ("radixsort", "sort_", "index_put"))
    )
    busiest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:20])
    passes = sorted(name for name in kernels if PASS_OF_THE_HEAD in name.lower())
    return {
        "kernels": busiest,
        "sort_share": sorting / max(1e-9, sum(kernels.values())),
        "graphs": len(graphs),
        "passes": passes,
    }


def _resume(scene: Scene) -> dict[str, Any]:
    """A run that is killed with SIGKILL and resumed, beside the same one straight through."""
    max_steps, every = scene.sized((60, 10), (10, 4))
    pair = [
        _recipe(scene, f"resume {which}", max_steps, batch=16, micro_batch=8, checkpoint={"every_steps": every})
        for which in ("straight", "killed")
    ]
    return killed_and_resumed(scene, *pair, max_steps, every, precision=_precision(scene))
