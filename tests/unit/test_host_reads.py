"""How often the host reads from the device in a step of the loop: once, the numbers of a step that is over. Each other read would be a wait.

Counted on a CPU, by what is called: a scalar or a list taken out of a tensor, an operation whose result's size depends on values. What a
GPU's own kernels wait for is seen by the part `first` of tests/gpu/run alone.
"""

import json
import math
import os
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import launching
from tests.accelerators import forget_accelerator
from tests.launching import ONE_THREAD, TINY_GPT2, TINY_LLAMA, write_recipe

READING_METHODS = {"tolist", "numpy", "cpu", "__array__", "pin_memory"}
"""Of a tensor, in Python; what ends in an operation is counted there."""

READING_OPERATIONS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "is_nonzero",
    "allclose",
}
"""`.item()`, `bool()`, `float()` and `int()` are `_local_scalar_dense`."""

CASES = [
    (model, optimizer, num_micro_batches)
    for model in ("gpt2", "llama")
    for optimizer in ("adamw", "muon")
    for num_micro_batches in (1, 16)
]

STEPS = 5
DETAILED_STEP = 4


class HostReads:
    """Counts reads in its block, by the step that the loop is in and the place in the trainer (or elsewhere) that asks for it."""

    def __init__(self, progress):
        self._progress = progress
        self.seen: dict[int, Counter] = {}
        self._modes = (_Methods(self), _Operations(self))

    def note(self, what):
        frames = [
            frame
            for frame in traceback.extract_stack()
            if "/torch/" not in frame.filename and Path(frame.filename) != Path(__file__)
        ]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].name}"
        self.seen.setdefault(self._progress.step, Counter())[f"{place} {what}"] += 1

    def __enter__(self):
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Methods(TorchFunctionMode):
    def __init__(self, reads):
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING_METHODS:
            self._reads.note(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if name in READING_OPERATIONS or by_mask:
            self._reads.note(name)
        return func(*args, **(kwargs or {}))


def count_all(recipes, path):
    """In a process of its own: takes the steps of each recipe, and writes down the reads of each step."""

    from trainer.config.load import load
    from trainer.loop import train
    from trainer.run.begin import begin_run
    from trainer.safety.requests import Requests

    os.environ.update(ONE_THREAD, ACCELERATE_USE_CPU="true")
    found = {}
    for case, recipe in recipes.items():
        forget_accelerator()
        run = begin_run(load(recipe).config, Requests())
        with HostReads(run.progress) as reads:
            train(run)
        run.checkpointer.close()
        run.reporter.close()
        run.checkpointer.end(wait_for_copies=False)
        found[case] = reads.seen
    Path(path).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """By case: by step, how often each place read."""
    folder, recipes = tmp_path_factory.mktemp("reads"), {}
    for model, optimizer, num_micro_batches in CASES:
        (folder / f"{model}-{optimizer}-{num_micro_batches}").mkdir()
        recipes[f"{model}-{optimizer}-{num_micro_batches}"] = str(
            write_recipe(
                folder / f"{model}-{optimizer}-{num_micro_batches}",
                max_steps=STEPS,
                global_batch=2 * num_micro_batches,
                micro_batch=2,
                model={"config": {"gpt2": TINY_GPT2, "llama": TINY_LLAMA}[model]},
                optimizer={"name": optimizer},
                schedule={"warmup_steps": 1},
                evaluation={"every_steps": STEPS, "sample_tokens": 0},
                checkpoint={"every_steps": STEPS, "max_lost_work_seconds": math.inf, "asynchronous": False},
                metrics={"trackers": [], "detail_every_steps": DETAILED_STEP},
            )
        )
    process = launching.server_context().Process(target=count_all, args=(recipes, str(folder / "reads.json")))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return json.loads((folder / "reads.json").read_text())


@pytest.mark.parametrize(("model", "optimizer", "num_micro_batches"), CASES)
def test_a_step_reads_once_from_the_device_whatever_the_model_the_optimizer_and_the_micro_batches(
    counted, model, optimizer, num_micro_batches
):
    seen = counted[f"{model}-{optimizer}-{num_micro_batches}"]
    numbers = {"consensus.py:_result tolist": 1}
    plain = {step: seen[str(step)] for step in range(1, STEPS) if step != DETAILED_STEP}
    assert plain == dict.fromkeys(plain, numbers)
    assert seen[str(DETAILED_STEP)] == {**numbers, "host_copy.py:read numpy": 1}
    before = {"consensus.py:votes_to_stop _local_scalar_dense", "tensor_names.py:first_not_finite _local_scalar_dense"}
    assert set(seen["0"]) == before, (
        "once a launch, before the first step: was a rank asked to stop, and is every weight finite"
    )


def test_a_hidden_read_would_be_counted():
    class Progress:
        step = 7

    x = torch.arange(4.0)
    with HostReads(Progress) as reads:
        x[0].item(), bool(x[1] > 0), float(x[2]), x.tolist(), x.numpy(), x.nonzero(), x[x > 1], torch.equal(x, x)
        (x + 1).sum()
    assert reads.seen[7].total() == 8
