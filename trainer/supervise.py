"""What `./launch.sh` does once Python is there: pick the cluster file, check everything, launch, and give the run's own exit code.

`accelerate launch` returns 1 for every failure, dies before our code runs when a precision's library is missing, and gives each process one
thread. So the check comes before it, and the result is read from runs/NAME/outcome.json after it. Imports no torch.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer import files
from trainer.config.folders import check_not_held, checkpoints_folder, run_folder
from trainer.config.batch import accumulation_steps
from trainer.config.load import Loaded, load, recipe_names
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.metrics.outcome import EXIT_CODES, read_outcome
from trainer.precision.decide import MODES, decide
from trainer.text import did_you_mean

SHUTDOWN_SECONDS = 600
"""How long a launcher waits for a last save after SIGTERM; torch's own 30 seconds are short for a large model."""

REQUIRED = ("distributed_type", "num_processes", "mixed_precision")


@dataclass(frozen=True)
class Cluster:
    """What a cluster file asks for."""

    path: Path
    num_processes: int
    precision: str
    use_cpu: bool


def clusters_folder() -> Path:
    """Where the cluster files are."""
    return files.project_folder() / "accelerate_configs"


def cluster_names() -> list[str]:
    """The shipped cluster files by name."""
    return sorted(path.stem for path in clusters_folder().glob("*.yaml"))


def split_words(words: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """`[CLUSTER] [RECIPE] [key=value ...]` taken apart: the cluster file (None: the one that fits), the recipe, the overrides."""
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if len(names) > 2:
        raise ConfigError(f"too many names: {' '.join(names)}; the form is: ./launch.sh [CLUSTER] [RECIPE] [key=value ...]")
    if len(names) == 1 and _is_recipe(names[0]):
        names.insert(0, "")
    cluster, recipe = (*names, "", "")[:2]
    return cluster or None, recipe or "shakespeare", overrides


def _is_recipe(name: str) -> bool:
    """Whether a single name means a recipe; a YAML file is a cluster file when it says `distributed_type`."""
    if name in cluster_names():
        return False
    if name.endswith((".yaml", ".yml")):
        return not Path(name).is_file() or "distributed_type" not in Path(name).read_text(encoding="utf-8", errors="replace")
    if name in recipe_names():
        return True
    raise ConfigError(
        f"{name!r} is neither a cluster file nor a recipe; {did_you_mean(name, [*cluster_names(), *recipe_names()])} "
        "(or give the path of a YAML file)"
    )


def fitting_cluster() -> str:
    """The shipped cluster file for this machine: by the number of its NVIDIA GPUs."""
    num_gpus = count_gpus()
    if num_gpus == 0:
        return "cpu"
    return "4gpu_bf16" if num_gpus >= 4 else "1gpu_bf16"


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use; 0 where there is no driver."""
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlShutdown()


def read_cluster(name: str) -> Cluster:
    """A cluster file by name or path; ConfigError tells everything that is wrong with it."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else clusters_folder() / f"{name}.yaml"
    if not path.is_file():
        known = cluster_names()
        raise ConfigError(f"unknown cluster file {name!r}; {did_you_mean(name, known)} (or give the path of a YAML file)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(f"cluster file {path} is not readable YAML ({cause}); mend it or write one with `accelerate config`") from None
    if not isinstance(content, dict):
        raise ConfigError(f"cluster file {path} holds no settings; see accelerate_configs/cpu.yaml for the form")
    if problems := _cluster_problems(path, content):
        raise ConfigError(*problems)
    return Cluster(path, int(content["num_processes"]), _precision(content), bool(content.get("use_cpu", False)))


def _cluster_problems(path: Path, content: dict[str, Any]) -> list[str]:
    problems = [f"cluster file {path} lacks {key}; see accelerate_configs/ for complete ones" for key in REQUIRED if key not in content]
    if problems:
        return problems
    num_processes = content["num_processes"]
    if not isinstance(num_processes, int) or num_processes < 1:
        problems.append(f"cluster file {path}: num_processes is {num_processes!r}, but should be a whole number of at least 1")
    if _precision(content) not in MODES:
        problems.append(f"cluster file {path}: mixed_precision is {content['mixed_precision']!r}; {did_you_mean(_precision(content), MODES)}")
    if content["distributed_type"] != "MULTI_GPU":
        problems.append(
            f"cluster file {path}: distributed_type is {content['distributed_type']!r}; use MULTI_GPU, also for one process (the launcher of "
            "'NO' leaves the trainer behind on SIGTERM) and, with use_cpu: true, for CPUs (MULTI_CPU starts a single process)"
        )
    return problems


def _precision(content: dict[str, Any]) -> str:
    """`mixed_precision`, where YAML reads a bare `no` as False."""
    value = content["mixed_precision"]
    return "no" if value is False else str(value).lower()


@dataclass(frozen=True)
class Plan:
    """A launch that was checked: what will be run, and where its outcome will stand."""

    loaded: Loaded
    cluster: Cluster
    command: list[str]
    environment: dict[str, str]
    folder: Path

    @property
    def config(self) -> Config:
        return self.loaded.config


def plan(words: Sequence[str]) -> Plan:
    """Checks `[CLUSTER] [RECIPE] [key=value ...]` as far as it goes without torch, and says what to run."""
    cluster_name, recipe, overrides = split_words(words)
    cluster = read_cluster(cluster_name or fitting_cluster())
    if not cluster.use_cpu and (num_gpus := count_gpus()) < cluster.num_processes:
        raise ConfigError(
            f"cluster file {cluster.path.stem} wants {cluster.num_processes} GPUs and this machine has {num_gpus}; "
            f"take {fitting_cluster()}, or set num_processes in a copy of the file"
        )
    loaded = load(recipe, overrides)
    accumulation_steps(loaded.config.global_batch, loaded.config.micro_batch, cluster.num_processes)
    # The decision about fp8 that needs no GPU comes here, since `accelerate launch` dies on fp8 where no library for it is installed.
    precision = decide(cluster.precision, device_type="cpu", has_bf16=True).mode if cluster.precision == "fp8" else cluster.precision
    command = [
        sys.executable, "-m", "trainer.supervise", "--config_file", str(cluster.path), "--mixed_precision", precision,
        "-m", "trainer", "train", recipe, *overrides,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "TRAINER_ASKED_PRECISION": cluster.precision,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS)),
        **({"ACCELERATE_USE_CPU": "true"} if cluster.use_cpu else {}),
    }
    folder = run_folder(loaded.config)
    check_not_held(folder)
    return Plan(loaded, cluster, command, environment, folder)


def newest_step(config: Config) -> int | None:
    """The step of the newest checkpoint on disk, by its folder's name; None when there is none."""
    folder = checkpoints_folder(config)
    steps = [int(match[1]) for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return max(steps, default=None)


def is_finished(checked: Plan) -> bool:
    """Whether the run took all its steps before, and nothing else is asked of it."""
    outcome = read_outcome(checked.folder)
    return (
        checked.config.resume_from_checkpoint == "latest"
        and outcome is not None
        and outcome["outcome"] == "finished"
        and (newest_step(checked.config) or 0) >= checked.config.max_steps
    )


def run_launch(checked: Plan) -> int:
    """Runs `accelerate launch`, forwards signals to it, and returns the run's own exit code.

    A terminal that closes (SIGHUP) asks for a clean stop; a signal that is ignored here, as under nohup, stays ignored.
    """
    before = read_outcome(checked.folder)
    child: subprocess.Popen | None = None
    forwarded: list[int] = []

    def forward(number: int, _frame: object) -> None:
        sent = signal.SIGTERM if number == signal.SIGHUP else number
        if sent not in forwarded or sent == signal.SIGINT:
            forwarded.append(sent)
            if child is not None:
                child.send_signal(sent)

    # The handlers stand before there is a child, and what came too early for it is sent after: no instant leaves it behind.
    heard = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, forward) for number in heard}
    try:
        child = subprocess.Popen(checked.command, env=checked.environment, cwd=Path.cwd(), start_new_session=True)
        for number in list(forwarded):
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    after = read_outcome(checked.folder)
    return exit_code(code, after if after != before else None)  # what an earlier launch left says nothing about this one


def exit_code(launcher_code: int, outcome: dict[str, Any] | None) -> int:
    """The run's own code from its outcome; the launcher's failure where the run left none."""
    if outcome is None:
        return launcher_code or 1
    return EXIT_CODES[outcome["outcome"]]


def accelerate_launch() -> int:
    """`accelerate launch` itself, without the launcher's own tracebacks: the processes it started have said what happened."""
    import logging

    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except (SignalException, ChildFailedError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(accelerate_launch())
