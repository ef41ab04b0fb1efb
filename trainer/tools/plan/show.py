"""A plan, for a person on a terminal of any width and for a program."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from trainer.text import count, duration, numbered, size, table
from trainer.tools.plan.plan import Fit, Plan

_LABEL = 12
UNKNOWN = "unknown"

_PRECISIONS = {"no": "fp32"}


def text(plan: Plan, width: int) -> str:
    """The report: no line is wider than the terminal."""
    width = max(60, width)
    head = f"{plan.config.name} under {plan.cluster.path.stem}, before anything is started"
    parts = [head, _rows(_what(plan), width), _memory(plan, width)]
    if len(plan.fits) > 1:
        parts.append(_kinds(plan, width))
    parts.append(_rows(_of_the_first(plan), width))
    notes = [line for note in _notes(plan) for line in textwrap.wrap(f"note: {note}", width, subsequent_indent="  ")]
    return "\n\n".join([*parts, "\n".join(notes)])


def _rows(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Labels and what they mean, wrapped under themselves."""
    lines = []
    for label, words in rows:
        first, *rest = textwrap.wrap(words, width - _LABEL - 2) or [""]
        lines += [f"  {label:{_LABEL}}{first}", *(" " * (_LABEL + 2) + line for line in rest)]
    return "\n".join(lines)


def _what(plan: Plan) -> list[tuple[str, str]]:
    config, counts = plan.config, plan.shapes.counts
    active = f", {count(counts.active)} active a token" if counts.active < counts.total else ""
    trained = sum(w.numel for w in plan.shapes.weights if w.is_trained)
    frozen = "" if trained == counts.total else f"; {count(trained)} of them are trained"
    rows = plan.shapes.head.shape[0]
    step_tokens = config.global_batch * config.sequence_length
    ratio = plan.tokens / counts.total
    per_token = plan.work.model / step_tokens
    pieces = f"{config.micro_batch} at once on {_places(plan, 'each of ')}"
    known = plan.data.train_tokens
    epochs = f"{plan.tokens / known:.3g} epochs of {count(known)}" if known else f"epochs {UNKNOWN}"
    return [
        (
            "model",
            f"{plan.shapes.model_type}, {counts.total:,} parameters: {count(counts.non_embedding)} without embeddings{active}{frozen}",
        ),
        ("vocabulary", f"{plan.data.vocab_size:,} ids in {rows:,} rows"),
        (
            "a step",
            f"{config.global_batch} sequences of {config.sequence_length} = {count(step_tokens)} tokens: {pieces}, {plan.setting.accumulation} times",
        ),
        (
            "the run",
            f"{numbered(config.max_steps, 'step')}, {count(plan.tokens)} tokens, {ratio:.3g} a parameter, {epochs}",
        ),
        (
            "arithmetic",
            f"{_flop(per_token)} a token, {_flop(plan.work.model)} a step, {_flop(plan.work.model * config.max_steps)} in all",
        ),
    ]


def _places(plan: Plan, each: str = "") -> str:
    """What computes, with its number: "each of 4 GPUs", "one GPU"."""
    number, kind = plan.cluster.num_processes, "process" if plan.cluster.use_cpu else "GPU"
    return f"{each}{numbered(number, kind)}" if number > 1 else f"one {kind}"


def _flop(number: float) -> str:
    for limit, unit in ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number / 1e6:.3g} MFLOP"


def _memory(plan: Plan, width: int) -> str:
    """The memory of one process, by part."""
    first, setting = plan.fits[0], plan.setting
    memory, (without, again) = first.memory, plan.activations
    other = (
        f"{size(again)} with gradient checkpointing"
        if not setting.is_checkpointed
        else f"{size(without)} without gradient checkpointing"
    )
    compiled = "compiled" if setting.is_compiled else "not compiled"
    arithmetic = _PRECISIONS.get(setting.precision, setting.precision)
    whose = "one process" if setting.on_cpu else "one GPU"
    head = f"memory of {whose}, {arithmetic}, blocks {compiled}, {setting.micro_batch} x {setting.sequence_length} tokens at once"
    parts = [
        ("weights", memory.weights, "fp32"),
        ("gradients", memory.gradients, "fp32"),
        ("moments", memory.moments, plan.config.optimizer.name),
        ("copies", memory.copies, "weights in lower precision"),
        ("activations", memory.activations, f"kept for the backward pass; {other}"),
        ("head", memory.head, "logits of a chunk, gradients of head and embedding"),
        ("working", memory.working, "of a block going backward"),
        ("libraries", memory.base, "the process itself" if setting.on_cpu else "CUDA and its libraries, assumed"),
    ]
    lines = [(name, size(part), words) for name, part, words in parts if part]
    lines.append(("in all", size(memory.on_device), _verdict(first)))
    if plan.config.checkpoint.asynchronous:
        lines.append(("snapshots", size(memory.snapshots), "up to two, in the memory of the machine that saves"))
    cells = [(f"  {name:{_LABEL}}{amount:>9}  ", words) for name, amount, words in lines]
    out = [f"  {line}" if place else line for place, line in enumerate(textwrap.wrap(head, width - 2))]
    for left, words in cells:
        out += textwrap.wrap(words, width, initial_indent=left, subsequent_indent=" " * len(left)) or [left.rstrip()]
    return "\n".join(out)


def _verdict(fit: Fit) -> str:
    there = fit.device.memory_bytes
    if there is None:
        return f"whether it fits is {UNKNOWN}: the memory of {fit.device.name} is not known"
    name = fit.device.name
    if fit.fits:
        return f"fits {name} with {size(there)}; {size(there - fit.needed_bytes)} left"
    needed = f", {size(fit.needed_bytes)} needed" if fit.needed_bytes != fit.memory.on_device else ""
    return f"does NOT fit {name} with {size(there)}{needed}: {_change(fit)}"


def _change(fit: Fit) -> str:
    return (
        f"it would with {fit.change}"
        if fit.change
        else "no change of micro_batch, checkpointing or sharding makes it fit"
    )


def _kinds(plan: Plan, width: int) -> str:
    """The run on each kind of GPU."""
    has_price = plan.fits[0].price is not None
    rows = [("GPU", "memory", "needs", "fits", "days", *(("cost",) if has_price else ()))]
    for fit in plan.fits:
        days = (
            UNKNOWN
            if fit.train_seconds is None
            else f"{(fit.train_seconds + (fit.evaluation_seconds or 0)) / 86400:.3g}"
        )
        memory = UNKNOWN if fit.device.memory_bytes is None else size(fit.device.memory_bytes)
        verdict = {True: "yes", False: "no", None: UNKNOWN}[fit.fits]
        price = (f"{fit.price:,.0f}" if fit.price is not None else UNKNOWN,) if has_price else ()
        rows.append((fit.device.name, memory, size(fit.needed_bytes), verdict, days, *price))
    changes = ["fits with", *("-" if fit.fits else fit.change or "nothing" for fit in plan.fits)]
    lefts = table(rows).splitlines()
    start = max(map(len, lefts)) + 2
    lines = []
    for left, change in zip(lefts, changes, strict=True):
        lines += textwrap.wrap(change, width, initial_indent=f"{left:{start}}", subsequent_indent=" " * start)
    return "\n".join(lines)


def _of_the_first(plan: Plan) -> list[tuple[str, str]]:
    fit, storage = plan.fits[0], plan.storage
    rows = [("time", _time(plan, fit))]
    if fit.price is not None:
        hours = ((fit.train_seconds or 0) + (fit.evaluation_seconds or 0)) / 3600 * plan.cluster.num_processes
        unit = "processor" if plan.cluster.use_cpu else "GPU"
        rows.append(("cost", f"{fit.price:,.2f} for {hours:,.3g} {unit}-hours"))
    rows.append(
        (
            "checkpoint",
            f"{size(storage.checkpoint_bytes)}; at most {storage.most_kept} are kept: {size(storage.disk_bytes)} of disk with one being written",
        )
    )
    rows.append(("saves", " ".join(_saves(plan))))
    return rows


def _time(plan: Plan, fit: Fit) -> str:
    if fit.step_seconds is None or fit.train_seconds is None or plan.pace is None:
        why = "its peak is not known" if fit.device.peak_flops is None else "nobody has measured it"
        return f"{UNKNOWN} on {fit.device.name}: {why}; --mfu or --like RUN says how fast it computes"
    peak = f"{_flop(fit.device.peak_flops or 0)}/s" + (" (fp32 product, measured now)" if plan.cluster.use_cpu else "")
    share = f"MFU {fit.mfu:.0%}" if fit.mfu is not None else ""
    evaluation = f", and {duration(fit.evaluation_seconds)} of evaluations" if fit.evaluation_seconds else ""
    tokens = plan.config.global_batch * plan.config.sequence_length / fit.step_seconds
    return (
        f"{duration(fit.train_seconds)} of training{evaluation}: {duration(fit.step_seconds)} a step, {count(tokens)} tokens/s on "
        f"{_places(plan)}, {fit.device.name} of {peak}; {share}, {plan.pace.source}"
    )


def _saves(plan: Plan) -> Iterator[str]:
    storage = plan.storage
    if storage.saves is None or storage.written_bytes is None or storage.interval_seconds is None:
        yield f"{UNKNOWN}, since the length of a step is"
        return
    number = sum(storage.saves.values())
    causes = ", ".join(f"{each:,} by {cause}" for cause, each in storage.saves.items())
    yield f"one every {duration(storage.interval_seconds)}, so that a crash of the machine loses {duration(storage.lost_work_seconds or 0)} at most;"
    yield f"{number:,} in all ({causes}), {size(storage.written_bytes)} written"
    if storage.most_best:
        yield f"and up to {storage.most_best:,} more for a best validation loss"


def _notes(plan: Plan) -> Iterator[str]:
    if plan.data.assumed:
        yield plan.data.assumed
    if not plan.is_built:
        yield "counted by the fields of the config; --exact builds the model on the meta device and counts that"
    yield (
        "weights, gradients, moments, head and snapshots are counted; activations, libraries and time are estimated"
        + ("" if plan.setting.on_cpu else ", and nothing of it was measured on a GPU")
        + "; what a save costs is taken from a measured one until the run measures its own"
    )


def facts(plan: Plan) -> dict[str, Any]:
    """The same as plain values; null for what is not known."""
    counts = plan.shapes.counts
    first = plan.fits[0]
    return {
        "name": plan.config.name,
        "cluster": plan.cluster.path.stem,
        "processes": plan.cluster.num_processes,
        "precision": plan.setting.precision,
        "model_type": plan.shapes.model_type,
        "built": plan.is_built,
        "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, "active": counts.active},
        "vocab_size": plan.data.vocab_size,
        "vocab_assumed": plan.data.assumed is not None,
        "steps": plan.config.max_steps,
        "tokens": plan.tokens,
        "step_tokens": plan.config.global_batch * plan.config.sequence_length,
        "train_tokens": plan.data.train_tokens,
        "flops": {**asdict(plan.work), "run": plan.work.model * plan.config.max_steps},
        "setting": asdict(plan.setting),
        "activations": dict(zip(("plain", "checkpointed"), plan.activations, strict=True)),
        "pace": None if plan.pace is None else asdict(plan.pace),
        "devices": [_device_facts(fit) for fit in plan.fits],
        "storage": {
            **asdict(plan.storage),
            "written_bytes_a_day": _a_day(plan.storage.written_bytes, first.train_seconds),
        },
    }


def _a_day(num_bytes: int | None, seconds: float | None) -> float | None:
    return None if num_bytes is None or not seconds else num_bytes * 86400 / seconds


def _device_facts(fit: Fit) -> dict[str, Any]:
    return {**asdict(fit), "memory": {**asdict(fit.memory), "on_device": fit.memory.on_device}}
