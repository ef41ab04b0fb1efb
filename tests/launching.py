"""Starts, kills and inspects whole runs on tiny models, each rank in a process of its own.

Importing torch, accelerate and transformers takes longer than such a run. So ranks are forked from a server that has
imported them and done nothing else: they start in a tenth of a second and die of SIGKILL like any process. What
`accelerate launch` and `./launch.sh` add is tested with the real ones, in test_launching.py.
"""

import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.data.shards import ShardWriter

PROJECT = Path(__file__).resolve().parent.parent

TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY_GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
}

GRACE_SECONDS = 20.0
"""How long the other ranks have, once one has failed, to find out and to say so."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def write_shards(folder: Path, num_train: int = 700, num_val: int = 200, vocab_size: int = 257) -> None:
    """A train and a validation shard of random tokens with some order in them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name, number in (("tiny_train_000001.bin", num_train), ("tiny_val_000000.bin", num_val)):
        tokens = np.cumsum(generator.integers(0, 3, number)) % vocab_size
        with ShardWriter(folder / name, vocab_size) as writer:
            writer.write(tokens)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of 24 steps that takes a second: accumulation of 4, several epochs, a checkpoint every 5 steps."""
    if not (folder / "data").exists():
        write_shards(folder / "data")
    recipe = {
        "name": "tiny",
        "max_steps": 24,
        "global_batch": 8,
        "micro_batch": 2,
        "sequence_length": 16,
        "checkpoints_folder": str(folder / "checkpoints"),
        "runs_folder": str(folder / "runs"),
        "data": {
            "train": [str(folder / "data" / "*_train_*.bin")],
            "validation": [str(folder / "data" / "*_val_*.bin")],
            "tokenizer": "bytes",
        },
        "model": {"config": TINY_LLAMA},
        "optimizer": {"lr": 0.003},
        "schedule": {"warmup_steps": 4},
        "checkpoint": {"every_steps": 5, "keep_last": 3},
        "evaluation": {"every_steps": 8, "sample_tokens": 0},
        "metrics": {"console_every_steps": 1},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(_merged(recipe, changes)))
    return path


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "config"
        out[key] = _merged(out[key], value) if nested else value
    return out


def write_cluster(folder: Path, num_processes: int, **changes: Any) -> Path:
    """The shipped CPU cluster file for this many processes, without torch.compile, which takes longer than the test."""
    content = yaml.safe_load((PROJECT / "accelerate_configs" / "cpu_2proc.yaml").read_text())
    content = {**content, "num_processes": num_processes, **changes}
    content.pop("dynamo_config")
    path = folder / f"cluster_{num_processes}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def environment(**extra: str) -> dict[str, str]:
    """What a run in a process of its own finds: this checkout first, one thread, no GPU."""
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": str(PROJECT), "ACCELERATE_USE_CPU": "true", **extra}


class Started:
    """A run in progress: one process a rank, all writing into one file."""

    def __init__(
        self,
        recipe: Path,
        overrides: Sequence[str],
        num_processes: int,
        sabotage: Callable[[], None] | None = None,
        command: str = "train",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`sabotage` is called in every rank before it runs: a function by its name, or a partial of one. `environment` is every rank's."""
        server_context().set_forkserver_preload(["tests.preload"])
        self.output = recipe.parent / f"output-{time.monotonic_ns()}.log"
        words = ["trainer", command, str(recipe), *overrides]
        self._store, group = meeting_point(num_processes) if num_processes > 1 else (None, {})
        self.ranks = []
        for rank in range(num_processes):
            place = {**group, "RANK": rank, "LOCAL_RANK": rank} if group else {}
            variables = {
                **ONE_THREAD,
                "ACCELERATE_USE_CPU": "true",
                **(environment or {}),
                **{key: str(value) for key, value in place.items()},
            }
            self.ranks.append(
                server_context().Process(target=_run, args=(words, variables, str(self.output), sabotage))
            )
        for process in self.ranks:
            process.start()

    @property
    def running(self) -> bool:
        return all(process.is_alive() for process in self.ranks)

    def kill(self) -> None:
        """SIGKILL to every rank."""
        for process in self.ranks:
            process.kill()
        self.wait()

    def wait(self, timeout: float = 200.0) -> int:
        """The exit code of rank 0, once all have ended; ranks that outlive a failed one are killed after a while."""
        ends = time.monotonic() + timeout
        while alive := [process.sentinel for process in self.ranks if process.is_alive()]:
            if any(process.exitcode for process in self.ranks):
                ends = min(ends, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() >= ends:
                self._end_late_ranks(timeout)
            multiprocessing.connection.wait(alive, max(0.0, ends - time.monotonic()))
        return self.ranks[0].exitcode

    def _end_late_ranks(self, timeout: float) -> None:
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
            process.join()
        assert any(codes), f"the run did not end in {timeout} s (exit codes: {codes}):\n{self.text()}"

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def server_context() -> multiprocessing.context.ForkServerContext:
    return multiprocessing.get_context("forkserver")


def _run(words: list[str], variables: dict[str, str], output: str, sabotage: Callable[[], None] | None) -> None:
    """The body of a forked rank: what `python -m trainer train ...` does, with its output in a file."""
    os.setsid()
    os.environ.update(variables)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = words
    from trainer.cli import main

    if sabotage:
        sabotage()
    main()


def meeting_point(num_processes: int) -> tuple[Any, dict[str, object]]:
    """A store in this process where the ranks meet, and what tells them where it is.

    As under `accelerate launch`: a port that is bound before anybody hears of it, so nobody else can take it first.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store, {
        "WORLD_SIZE": num_processes,
        "LOCAL_WORLD_SIZE": num_processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": 0,
    }


def start(recipe: Path, *overrides: str, num_processes: int = 1) -> Started:
    """Starts a run in the background."""
    return Started(recipe, overrides, num_processes)


def train(recipe: Path, *overrides: str, num_processes: int = 1, exit_code: int = 0) -> str:
    """Runs to the end and returns what was printed; another exit code fails with it."""
    run = Started(recipe, overrides, num_processes)
    code = run.wait()
    assert code == exit_code, f"exit code {code}\n{run.text()}"
    return run.text()


def wait_for_step(recipe: Path, step: int, run: Started, timeout: float = 120.0) -> None:
    """Waits until the curve of the run has this step."""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        if any(record.get("step", 0) >= step for record in records(recipe)):
            return
        assert run.running, f"the run ended before step {step}:\n{run.text()}"
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached in {timeout} s:\n{run.text()}")


def records(recipe: Path, name: str = "tiny") -> list[dict[str, Any]]:
    """The whole records of a run's curve."""
    path = recipe.parent / "runs" / name / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def steps(recipe: Path, name: str = "tiny") -> list[dict[str, Any]]:
    """The records of optimizer steps."""
    return [record for record in records(recipe, name) if "loss" in record]


def outcome(recipe: Path, name: str = "tiny") -> dict[str, Any]:
    return json.loads((recipe.parent / "runs" / name / "outcome.json").read_text())


def checkpoint(recipe: Path, step: int, name: str = "tiny") -> Path:
    return recipe.parent / "checkpoints" / name / f"step-{step:08d}"


def final_bytes(recipe: Path, step: int = 24, name: str = "tiny") -> dict[str, bytes]:
    """The files whose equality means that two runs are the same run."""
    folder = checkpoint(recipe, step, name)
    return {file: (folder / file).read_bytes() for file in ("model.safetensors", "optimizer.bin")}
