"""The cluster file, Accelerate's own YAML: which processes there are, and the precision they compute in.

Accelerate reads the file itself; what is read here is what has to be right before it does. Which file fits this machine is told here too.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer import files
from trainer.errors import ConfigError
from trainer.text import did_you_mean

MODES = ("no", "bf16", "fp16", "fp8")
"""What `mixed_precision` may be."""

COMPILED = {"dynamo_backend": "INDUCTOR", "dynamo_use_regional_compilation": True, "dynamo_use_dynamic": False}
"""What the shipped cluster files say of torch.compile: the blocks, one by one, for the shapes of the run."""

REQUIRED = ("distributed_type", "num_processes", "mixed_precision")


@dataclass(frozen=True)
class Cluster:
    """What a cluster file asks for."""

    path: Path
    num_processes: int
    precision: str
    use_cpu: bool
    num_machines: int = 1
    compiler: str = "no"
    """torch.compile's backend; `no` for none."""

    @property
    def num_local_processes(self) -> int:
        """Processes on each machine."""
        return self.num_processes // self.num_machines


def clusters_folder() -> Path:
    """Where the cluster files are."""
    return files.project_folder() / "accelerate_configs"


def cluster_names() -> list[str]:
    """The shipped cluster files by name."""
    return sorted(path.stem for path in clusters_folder().glob("*.yaml"))


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


def lacking_gpus(cluster: Cluster) -> str | None:
    """Why this machine has too few GPUs for a cluster file, and what to take instead; None when it has enough."""
    if cluster.use_cpu or (num_gpus := count_gpus()) >= cluster.num_local_processes:
        return None
    wanted, here = cluster.num_local_processes, " on each machine" if cluster.num_machines > 1 else ""
    fits = fitting_cluster().replace("bf16", "fp8") if cluster.precision == "fp8" else fitting_cluster()
    fewer = ", or set num_processes in a copy of the file" if num_gpus else ""
    return f"cluster file {cluster.path.stem} wants {wanted} GPU{'s' if wanted > 1 else ''}{here} and this machine has {num_gpus}; take {fits}{fewer}"


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
        path, content["num_processes"], _precision(content), bool(content.get("use_cpu", False)), content.get("num_machines", 1),
        _compiler(content),
    )  # fmt: skip


def missing_compiler() -> str | None:
    """Why torch.compile cannot work on this machine's CPUs; None when it can."""
    if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
        return None
    return "a C++ compiler (g++) is needed, and none is installed"


def write_variant(cluster: Cluster, path: Path, *, precision: str, compiled: bool) -> None:
    """Writes the same cluster file with another precision, compiled or not: as the file says where it compiles, and by blocks where it does not."""
    content = yaml.safe_load(cluster.path.read_text(encoding="utf-8"))
    own = content.pop("dynamo_config", None) or {}
    if compiled:
        content["dynamo_config"] = own if str(own.get("dynamo_backend", "no")).lower() != "no" else COMPILED
    files.write_atomic(path, yaml.safe_dump({**content, "mixed_precision": precision}, sort_keys=False))


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
    problems += [f"cluster file {path}: {what}" for what in unheard(content.get("fp8_config"))]
    if content["distributed_type"] != "MULTI_GPU":
        problems.append(
            f"cluster file {path}: distributed_type is {content['distributed_type']!r}; use MULTI_GPU, also for one process (the launcher of "
            "'NO' leaves the trainer behind on SIGTERM) and, with use_cpu: true, for CPUs (MULTI_CPU starts a single process)"
        )
    return problems


def unheard(fp8_config: Any) -> list[str]:
    """What a cluster file's fp8_config says and nothing would listen to, as sentences; Accelerate itself drops half of its keys."""
    settings = fp8_config if isinstance(fp8_config, dict) else {}
    problems = [
        f"fp8_config.{key} is not read, since the recipe sets up fp8 (precision.recipe, precision.format, precision.options); remove it here"
        for key in settings
        if key != "backend"
    ]
    if str(backend := settings.get("backend", "TE")).upper() != "TE":
        problems.append(f"fp8_config.backend is {backend!r}, and this trainer computes fp8 with TransformerEngine only; use TE")
    return problems


def _precision(content: dict[str, Any]) -> str:
    """`mixed_precision`, where YAML reads a bare `no` as False."""
    value = content["mixed_precision"]
    return "no" if value is False else str(value).lower()


def _compiler(content: dict[str, Any]) -> str:
    """What Accelerate takes for torch.compile's backend."""
    settings = content.get("dynamo_config")
    backend = settings.get("dynamo_backend", "no") if isinstance(settings, dict) else "no"
    return "no" if backend is False else str(backend).lower()
