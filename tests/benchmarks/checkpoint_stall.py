"""What does a save cost the training, and what does it cost the machine?

    python tests/benchmarks/checkpoint_stall.py [rounds] [--json FILE]
    python tests/benchmarks/checkpoint_stall.py 60 --cuda [--json FILE]

A model of 124 million parameters (GPT-2's size) with AdamW's state in fp32, 1.5 GB, on this machine's CPUs and disk. In each round,
in turn: one plain memory copy of the same bytes into warm buffers; a save in the background, timed while it holds the training thread,
then until it is on the disk; `Accelerator.save_state` followed by an fsync of every file. Then a training step is repeated with
and without a writer at work, which shows what the writer takes from it. Medians. Ends with 1 when

    the stall is more than 2.0 times the copy, or more than 1/8 of save_state + fsync
    the CPU time of the whole save (trainer and writer) is not below that of save_state + fsync
    stall and what the writer took from the steps are more than 1 % of the interval that the default budget chooses

With --cuda on a GPU: stalls of saves between updates, of which the median may be 20 ms and one in a hundred 300 ms. There the copies run beside
the next forward and backward pass, and the update waits for them on the device; here nothing is between save and update, so that `update` is
the longest that it can wait, beside the same update without a save.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from trainer import files
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Description
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.ranks import Ranks
from trainer.checkpoint.save.checkpointer import Checkpointer
from trainer.checkpoint.save.forecast import Course
from trainer.checkpoint.save.schedule import Budget, Costs, plan
from trainer.config.schema import CheckpointConfig
from trainer.launch.environment import num_threads
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.state import Progress, TrainState

MAX_COPIES, MAX_OF_SAVE_STATE, MAX_OVERHEAD = 2.0, 1 / 8, 0.01
MAX_CUDA_P50_SECONDS, MAX_CUDA_P99_SECONDS = 0.020, 0.300
COMPUTE_SECONDS = 12.0


class Training:
    """A model with its moments, and what saves it."""

    def __init__(self, folder: Path, *, on_cuda: bool = False, shape: Mapping[str, int] = MappingProxyType({})) -> None:
        """`shape`: fields of the model that are not GPT-2 124M's."""
        self.accelerator = Accelerator(cpu=not on_cuda)
        config = resolve("gpt2-124m", dict(shape), vocab_size=50257, sequence_length=1024, eot_id=50256)
        self.model = build_model(config, vocab_size=50257, seed=0, device=self.accelerator.device)
        self.optimizer = self.accelerator.prepare(torch.optim.AdamW(self.model.parameters(), fused=True))
        self.accelerator.prepare(self.model)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state = TrainState(Progress())
        store = CheckpointStore(folder / "checkpoints")
        ranks = Ranks(self.accelerator, store.folder)
        description = Description(
            identity={},
            model={},
            tokenizer=None,
            vocab_size=50257,
            precision="no",
            versions={},
            config_text="name: bench\n",
        )
        (folder / "metrics.jsonl").touch()
        context = CheckpointContext(
            accelerator=self.accelerator,
            ranks=ranks,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state,
            store=store,
            description=description,
            policy=Policy(1, 0),
            run_folder=folder,
            metrics_file=folder / "metrics.jsonl",
            marker=folder / ".saved",
        )
        course = Course(max_steps=10**6, global_batch=1, sequences_per_epoch=10**9, evaluation_every_steps=None)
        self.checkpointer = Checkpointer(
            context, CheckpointConfig(), course, before_commit=lambda: None, report=lambda step, values: None
        )
        self.checkpointer.begin(None)
        self.background = self.checkpointer.writer
        assert self.background is not None, "this machine's memory has no room for a snapshot"

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [parameter.detach() for parameter in self.model.parameters()] + moments

    def stall(self) -> tuple[float, float]:
        """Seconds that a periodic save holds the training thread, and its CPU seconds there."""
        self.state.advance(1, 1024)
        started, cpu = time.perf_counter(), time.process_time()
        self.checkpointer.save("budget", loss=None, val_loss=None)
        return time.perf_counter() - started, time.process_time() - cpu

    def written(self) -> tuple[float, float]:
        """Waits for the disk; the writer's seconds and CPU seconds."""
        while not (done := self.background.poll(1.0)):
            self.background.advance()
        assert done[0].failure is None, done[0].failure
        return done[0].seconds, done[0].cpu_seconds


def copied(training: Training, warm: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    torch._foreach_copy_(warm, training.tensors())
    return time.perf_counter() - started


def save_state(training: Training, folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of Accelerate's own save, until it is durable."""
    started, cpu = time.perf_counter(), time.process_time()
    training.accelerator.save_state(str(folder))
    for path in folder.iterdir():
        files.fsync_file(path)
    files.fsync_folder(folder)
    seconds = time.perf_counter() - started, time.process_time() - cpu
    shutil.rmtree(folder)
    return seconds


def steps(training: Training, seconds: float) -> list[float]:
    """Times of equal pieces of work on all cores, for so long."""
    left, right, times = torch.randn(768, 768), torch.randn(768, 768), []
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        for _ in range(20):
            left @ right
        times.append(time.perf_counter() - started)
    return times


def taken_by_the_writer(training: Training) -> float:
    """Seconds that one write takes from training: work while it is under way, against the same work without."""
    quiet = statistics.median(steps(training, COMPUTE_SECONDS / 4))
    training.stall()
    taken = 0.0
    while not training.background.poll():
        taken += sum(max(0.0, seconds - quiet) for seconds in steps(training, 0.05))
    return taken


def measure(rounds: int) -> dict[str, float]:
    torch.set_num_threads(num_threads())
    folder = Path(tempfile.mkdtemp(dir=Path.cwd(), prefix=".bench-"))
    try:
        training = Training(folder)
        warm = [torch.empty_like(tensor) for tensor in training.tensors()]
        seen: dict[str, list[float]] = {}
        for number in range(rounds + 3):
            copy = copied(training, warm)
            stall, stall_cpu = training.stall()
            write, write_cpu = training.written()
            plain, plain_cpu = save_state(training, folder / "plain")
            taken = taken_by_the_writer(training)
            row = {
                "copy": copy,
                "stall": stall,
                "write": write,
                "save_cpu": stall_cpu + write_cpu,
                "writer_cpu": write_cpu,
                "save_state": plain,
                "save_state_cpu": plain_cpu,
                "taken": taken,
            }
            print(
                ("warm-up " if number < 3 else "") + "  ".join(f"{name} {value:.3f}" for name, value in row.items()),
                flush=True,
            )
            if number >= 3:
                for name, value in row.items():
                    seen.setdefault(name, []).append(value)
        training.checkpointer.end(wait_for_copies=False)
    finally:
        shutil.rmtree(folder)
    return {name: statistics.median(values) for name, values in seen.items()} | {
        "bytes": sum(tensor.nbytes for tensor in warm),
        "stall_of_copy": statistics.median(
            stall / copy for stall, copy in zip(seen["stall"], seen["copy"], strict=True)
        ),
    }


def updated(training: Training, *, on_cuda: bool) -> float:
    """Seconds of one update, until the device has done it."""
    started = time.perf_counter()
    training.checkpointer.before_update()
    training.optimizer.step()
    if on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_between_updates(
    rounds: int, *, on_cuda: bool, shape: Mapping[str, int] = MappingProxyType({})
) -> dict[str, float]:
    """Seconds that a save holds the training thread, as median and 99th percentile; of an update at once after it, and of one without a save."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd(), prefix=".bench-"))
    try:
        training = Training(folder, on_cuda=on_cuda, shape=shape)
        rows = []
        for _ in range(rounds + 3):
            for parameter in training.model.parameters():
                parameter.grad = torch.randn_like(parameter)
            if on_cuda:
                torch.cuda.synchronize()
            plain = updated(training, on_cuda=on_cuda)
            stall, _ = training.stall()
            after = updated(training, on_cuda=on_cuda)
            rows.append((stall, after, plain))
            training.written()
        training.checkpointer.end(wait_for_copies=False)
    finally:
        shutil.rmtree(folder)
    stalls, after, plain = zip(*rows[3:], strict=True)
    late = sorted(stalls)[min(len(stalls) - 1, int(0.99 * len(stalls)))]
    return {
        "p50": statistics.median(stalls),
        "p99": late,
        "update": statistics.median(after),
        "update_without_save": statistics.median(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cuda", action="store_true")
    wanted = parser.parse_args()
    if wanted.cuda:
        found = measure_between_updates(wanted.rounds, on_cuda=True)
        finish(
            {"p50 seconds": (found["p50"], MAX_CUDA_P50_SECONDS), "p99 seconds": (found["p99"], MAX_CUDA_P99_SECONDS)},
            found,
            wanted,
        )
    median = measure(wanted.rounds)
    costs = Costs(median["stall"], median["write"], median["writer_cpu"], step_seconds=1.0)
    interval = plan(Budget(writer_takes_from_step=True), costs).write_interval_seconds
    checks = {
        "stall / copy": (median["stall_of_copy"], MAX_COPIES),
        "stall / (save_state + fsync)": (median["stall"] / median["save_state"], MAX_OF_SAVE_STATE),
        "CPU of the save / CPU of save_state": (median["save_cpu"] / median["save_state_cpu"], 1.0),
        f"(stall + taken) / interval of {interval:.0f} s": (
            (median["stall"] + median["taken"]) / interval,
            MAX_OVERHEAD,
        ),
    }
    finish(checks, median, wanted)


def finish(checks: dict[str, tuple[float, float]], median: dict[str, float], wanted: argparse.Namespace) -> None:
    """Prints each figure beside its bar, writes the JSON, and ends."""
    print("\nmedians: " + "  ".join(f"{name} {value:.4g}" for name, value in median.items()))
    for name, (value, bar) in checks.items():
        print(f"{'ok  ' if value <= bar else 'MISS'}  {name} = {value:.4f}, at most {bar:.4g}")
    if wanted.json:
        device = torch.cuda.get_device_name() if wanted.cuda else platform.processor() or platform.machine()
        machine = {
            "device": device,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        facts = {
            "hardware": machine,
            "rounds": wanted.rounds,
            "medians": median,
            "checks": {n: v for n, (v, _) in checks.items()},
        }
        wanted.json.write_text(json.dumps(facts, indent=1) + "\n")
    sys.exit(any(value > bar for value, bar in checks.values()))


if __name__ == "__main__":
    main()
