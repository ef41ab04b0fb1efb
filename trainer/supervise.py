"""What `./launch.sh` does once Python is there: pick the cluster file, check everything, launch, and give the run's own exit code.

`accelerate launch` returns 1 for every failure, dies before our code runs when a precision's library is missing, and gives each process one
thread. So the check comes before it, and the result is read from runs/NAME/outcome.json after it. Imports no torch.
"""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer import files
from trainer.config.batch import accumulation_steps
from trainer.config.folders import check_not_held, checkpoints_folder, run_folder
from trainer.config.load import Loaded, load, recipe_names
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.metrics.outcome import EXIT_CODES, read_outcome
from trainer.precision.decide import MODES, decide
from trainer.text import did_you_mean

log = logging.getLogger(__name__)

STOPPED_EARLY = "stopped before the first step; start it again to train"

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
    num_machines: int = 1


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
        raise ConfigError(
            f"too many names: {' '.join(names)}; the form is: ./launch.sh [CLUSTER] [RECIPE] [key=value ...]"
        )
    if len(names) == 1 and _is_recipe(names[0]):
        names.insert(0, "")
    cluster, recipe = (*names, "", "")[:2]
    return cluster or None, recipe or "shakespeare", overrides


def _is_recipe(name: str) -> bool:
    """Whether a single name means a recipe; a YAML file is a cluster file when it says `distributed_type`."""
    if name in cluster_names():
        return False
    if name.endswith((".yaml", ".yml")):
        return not Path(name).is_file() or "distributed_type" not in Path(name).read_text(
            encoding="utf-8", errors="replace"
        )
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
    """NVIDIA GPUs that this process may use, of those there are; 0 where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        there = pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return min(there, len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")]))


def read_cluster(name: str) -> Cluster:
    """A cluster file by name or path; ConfigError tells everything that is wrong with it."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else clusters_folder() / f"{name}.yaml"
    if not path.is_file():
        known = cluster_names()
        raise ConfigError(
            f"unknown cluster file {name!r}; {did_you_mean(name, known)} (or give the path of a YAML file)"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"cluster file {path} is not readable YAML ({cause}); mend it or write one with `accelerate config`"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"cluster file {path} holds no settings; see accelerate_configs/cpu.yaml for the form")
    if problems := _cluster_problems(path, content):
        raise ConfigError(*problems)
    return Cluster(
        path, content["num_processes"], _precision(content), bool(content.get("use_cpu", False)), content.get("num_machines", 1)
    )  # fmt: skip


def _cluster_problems(path: Path, content: dict[str, Any]) -> list[str]:
    problems = [
        f"cluster file {path} lacks {key}; see accelerate_configs/ for complete ones"
        for key in REQUIRED
        if key not in content
    ]
    if problems:
        return problems
    num_processes, num_machines = content["num_processes"], content.get("num_machines", 1)
    for name, number in (("num_processes", num_processes), ("num_machines", num_machines)):
        if not isinstance(number, int) or number < 1:
            problems.append(f"cluster file {path}: {name} is {number!r}, but should be a whole number of at least 1")
    if not problems and num_processes % num_machines:
        problems.append(
            f"cluster file {path}: num_processes is {num_processes}, but should be a multiple of num_machines, which is {num_machines}: it "
            "counts the processes of all machines"
        )
    if _precision(content) not in MODES:
        problems.append(
            f"cluster file {path}: mixed_precision is {content['mixed_precision']!r}; {did_you_mean(_precision(content), MODES)}"
        )
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
    wanted = cluster.num_processes // cluster.num_machines
    if not cluster.use_cpu and (num_gpus := count_gpus()) < wanted:
        here = " on each machine" if cluster.num_machines > 1 else ""
        raise ConfigError(
            f"cluster file {cluster.path.stem} wants {wanted} GPUs{here} and this machine has {num_gpus}; "
            f"take {fitting_cluster()}, or set num_processes in a copy of the file"
        )
    loaded = load(recipe, overrides)
    accumulation_steps(loaded.config.global_batch, loaded.config.micro_batch, cluster.num_processes)
    # The decision about fp8 that needs no GPU comes here, since `accelerate launch` dies on fp8 where no library for it is installed.
    precision = (
        decide(cluster.precision, device_type="cpu", has_bf16=True).mode
        if cluster.precision == "fp8"
        else cluster.precision
    )
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


@contextmanager
def stopped_early() -> Iterator[None]:
    """A signal in this block, where nothing runs yet, ends the process like an interrupted run: the scheduler queues it again."""

    def end(_number: int, _frame: object) -> None:
        log.warning(STOPPED_EARLY)
        sys.exit(EXIT_CODES["interrupted"])

    with _handling(end):
        yield


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Gives SIGTERM, SIGINT and SIGHUP (a closed terminal) to a handler; one that is ignored, as under nohup, stays ignored."""
    heard = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def run_launch(checked: Plan) -> int:
    """Runs `accelerate launch`, forwards signals to it (SIGHUP as SIGTERM), and returns the run's own exit code."""
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
    with _handling(forward):
        child = subprocess.Popen(checked.command, env=checked.environment, cwd=Path.cwd(), start_new_session=True)
        for number in list(forwarded):
            child.send_signal(number)
        code = child.wait()
    said = what_it_said(before, read_outcome(checked.folder))
    if forwarded and (said is None or said["outcome"] == "running"):
        trained = said is not None and said["reason"] == "training"
        log.warning(
            "stopped before its last checkpoint was whole; start it again to continue" if trained else STOPPED_EARLY
        )
        return EXIT_CODES["interrupted"]
    return exit_code(code, said)


def what_it_said(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the launch in between left: its outcome, or its refusal beside an earlier one; None when it said nothing."""
    if after is None or after == before:
        return None
    attempt = after.get("last_attempt")
    return attempt if attempt and attempt != (before or {}).get("last_attempt") else after


def exit_code(launcher_code: int, outcome: dict[str, Any] | None) -> int:
    """The run's own code from its outcome; the launcher's failure where the run left none."""
    if outcome is None:
        return launcher_code or 1
    if outcome["outcome"] == "running" and launcher_code == 0:
        return 0  # every process finished; only the disk had no room to say so
    return EXIT_CODES[outcome["outcome"]]


def accelerate_launch() -> int:
    """`accelerate launch` itself, without the launcher's own tracebacks: the processes it started have said what happened."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the launcher listens, a Ctrl+C ends it without a traceback
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # threads are counted by launch.num_threads
    try:
        main()
    except (SignalException, ChildFailedError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(accelerate_launch())
