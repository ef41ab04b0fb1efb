"""The preflight: what would end a run after hours is met before its first step, and nothing of it stays.

One step and one evaluation batch of full shape are computed on the run's first data, with the moments there, whose update the device skips;
the moments go again. Random streams are set after it, as after the warm-up. The ranks compare the bits of a computed tensor, and measure
how fast they sum. The disk's own proof is checkpoint/save/preflight.py.
"""

import logging
import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, nullcontext
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
import xxhash

from trainer.collectives import all_gather, broadcast_from_main
from trainer.data.loader import validation_batches
from trainer.errors import LaunchError
from trainer.evaluation.loss import validation_loss
from trainer.host_checks import clock_check, host_checks, wall_clock
from trainer.journal import Journal, read_events
from trainer.launch.accelerator import compute_dtype, device_words, wait_for_device
from trainer.optim.found_inf import found_inf_given, reads_found_inf
from trainer.run.build import Run
from trainer.run.identity import fingerprint
from trainer.text import duration, few

log = logging.getLogger(__name__)

CHAIN_SIZE, CHAIN_LENGTH = 256, 8
"""Rows of the matrices whose product is compared, and how many."""

REDUCED_BYTES = {"cuda": 64 << 20}
"""How much is summed over the ranks to measure the speed, by kind of device."""


def check_health(run: Run) -> None:
    """Makes the preflight where it is wanted and not known; every rank calls it after the warm-up, before anything is restored.

    raises  LaunchError where ranks compute differently; OutOfMemoryError's cause where memory is too small
    """
    if run.config.preflight is False:
        return
    conditions = fingerprint(run.config, run.accelerator.num_processes), device_words(run.accelerator), platform.node()
    known = run.config.preflight == "auto" and broadcast_from_main(lambda: _has_passed(run, conditions))
    if known:
        log.info("preflight: passed at the last start, with these settings on this machine")
        return
    started = time.perf_counter()
    facts: dict[str, Any] = {"not_compared": compare_ranks(chain_digest(run), device_name(run)), "step": _try_step(run)}
    facts |= {"evaluation": _try_evaluation(run), "bytes_per_second": _all_reduce_speed(run), **_look_at_host(run)}
    seconds = time.perf_counter() - started
    if run.accelerator.is_main_process:
        facts |= {"conditions": list(conditions), "seconds": round(seconds, 3)}
        Journal(run.folder).write("preflight", **facts)
    speed = facts["bytes_per_second"]
    summed = f"; ranks compute the same bits and sum at {speed / 1e9:.2f} GB/s" if speed else ""
    log.info("preflight: a step and an evaluation of full shape fit%s; %s", summed, duration(seconds))


def _has_passed(run: Run, conditions: Sequence[str]) -> bool:
    """Whether the last preflight of this run was under the same conditions; one that failed is not in the journal."""
    events = read_events(run.folder, "preflight")
    return bool(events) and events[-1].get("conditions") == list(conditions)


def _try_step(run: Run) -> str | None:
    """Everything that a step takes memory for, at the run's first batch; returns why it was not tried, None where it was."""
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    if run.precision.record.mode == "fp8" and run.config.precision.recipe == "delayed":
        return "delayed scaling keeps a history of what was computed"
    if not reads_found_inf(optimizer):
        return "the optimizer cannot skip its update on the device"
    assert not optimizer.state, "nothing has been restored yet"
    device, buffers = run.accelerator.device, [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    with closing(run.loader.batches(0)) as batches:
        batch = next(batches)
    run.model.train()
    try:
        _gradients(run, batch.micro_batches)
        run.parallel.clip_grad_norm(run.model.parameters(), run.config.optimizer.max_grad_norm)
        with found_inf_given(optimizer, torch.ones((), device=device)):
            optimizer.step()
        optimizer.zero_grad()
        _gradients(run, batch.micro_batches)  # now with the moments there, as in all steps but the first
        wait_for_device(device)
    finally:
        optimizer.zero_grad()
        optimizer.state.clear()
        for buffer, before in buffers:
            buffer.copy_(before)
    return None


def _gradients(run: Run, micro_batches: Sequence[Any]) -> None:
    """As many passes as show the greatest use of memory: the second has the gradients of the first beside it."""
    few_of_them = micro_batches[:2]
    for number, micro_batch in enumerate(few_of_them, start=1):
        with nullcontext() if number == len(few_of_them) else run.parallel.no_sync(run.model):
            run.accelerator.backward(run.model(micro_batch.inputs, labels=micro_batch.labels))


def _try_evaluation(run: Run) -> bool:
    """One batch of held-out text on each rank; False where there is none."""
    held_out, accelerator = run.corpus.validation, run.accelerator
    if held_out is None:
        return False
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes, "device": accelerator.device}
    batches = validation_batches(held_out, num_sequences=None, micro_batch=run.config.micro_batch, **place)
    pairs = [(batch.inputs, batch.labels) for batch in islice(batches, 1)]
    validation_loss(run.parallel.unwrap(run.model), pairs, lambda total: accelerator.reduce(total, reduction="sum"))
    return True


def device_name(run: Run) -> str:
    """What the rank computes on, so that only equal chips are expected to give equal bits."""
    device = run.accelerator.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.node()


def chain_digest(run: Run) -> str:
    """A digest of the bits of a fixed product of matrices, in fp32 and in what the run computes in."""
    device, digest = run.accelerator.device, xxhash.xxh3_128()
    generator = torch.Generator().manual_seed(0)  # its own: the run's streams are not drawn from
    matrices = torch.randn(CHAIN_LENGTH, CHAIN_SIZE, CHAIN_SIZE, generator=generator) / CHAIN_SIZE**0.5
    for dtype in dict.fromkeys((torch.float32, compute_dtype(run.accelerator))):
        product, *others = matrices.to(device, dtype)
        for matrix in others:
            product = product @ matrix
        digest.update(product.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def compare_ranks(digest: str, name: str) -> list[int]:
    """Compares what equal chips have computed; returns the ranks that other chips than rank 0's keep from being compared with it.

    raises  LaunchError, on every rank, with those that differ: the minority, or all where there is none
    """
    found = all_gather((name, digest))
    for kind in dict.fromkeys(kind for kind, _ in found):
        own = {rank: bits for rank, (other, bits) in enumerate(found) if other == kind}
        if wrong := differing(own):
            raise LaunchError(
                f"rank {few(list(map(str, wrong)))} computed other bits of a fixed matrix product than the others on {kind}: a chip or its memory "
                "computes wrongly, or their libraries differ. No step was taken; have that device tested and leave it out (CUDA_VISIBLE_DEVICES), "
                "or set preflight=false to start in spite of it"
            )
    return [rank for rank, (kind, _) in enumerate(found) if kind != found[0][0]]


def differing(digests: dict[int, str]) -> list[int]:
    """The ranks whose digest is not that of the most; all of them where no majority tells who is wrong."""
    counts = Counter(digests.values())
    [(most, number), *_] = counts.most_common(1)
    if len(counts) == 1:
        return []
    return [rank for rank, bits in digests.items() if 2 * number <= len(digests) or bits != most]


def _all_reduce_speed(run: Run) -> float | None:
    """Bytes a second that each rank sends while all sum a tensor; None for one that is alone."""
    ranks, device = run.accelerator.num_processes, run.accelerator.device
    if ranks == 1:
        return None
    tensor = torch.zeros(REDUCED_BYTES.get(device.type, 1 << 20) // 4, device=device)
    seconds = []
    for _ in range(3):  # the first one connects
        wait_for_device(device)
        started = time.perf_counter()
        dist.all_reduce(tensor)
        wait_for_device(device)
        seconds.append(time.perf_counter() - started)
    return 2 * (ranks - 1) / ranks * tensor.numel() * 4 / max(min(seconds), 1e-9)


def _look_at_host(run: Run) -> dict[str, Any]:
    """Clock, shared memory and limits of rank 0's machine, and all ranks' clocks; what is not as it should be is a warning."""
    clocks = all_gather(wall_clock())  # all leave the collective before it at about the same moment
    checks = host_checks(run.folder, pins_memory=run.accelerator.device.type == "cuda")
    if len(clocks) > 1:
        checks.append(clock_check("clocks of the ranks", max(clocks) - min(clocks)))
    if run.accelerator.is_main_process:
        for check in checks:
            log.log(logging.INFO if check.is_fine else logging.WARNING, "preflight: %s", check.words)
    return {
        "host": {check.name: check.value for check in checks},
        "not_fine": [c.name for c in checks if not c.is_fine],
    }
