"""The cluster file, Accelerate's own YAML: which processes there are, and the precision they compute in.

Accelerate reads the file itself; what is read here is what has to be right before it does, and which arguments its launcher needs
besides the file. Which file fits this machine is found here too; what each key may say stands in cluster_keys.py.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer import files
from trainer.config.cluster_keys import KEYS, compiler_settings, gpu_ids, is_whole, key_problems
from trainer.config.plain import Document, Kind, read_document
from trainer.errors import ConfigError
from trainer.text import did_you_mean

COMPILED = {"dynamo_backend": "INDUCTOR", "dynamo_use_regional_compilation": True, "dynamo_use_dynamic": False}
"""What the shipped cluster files say of torch.compile: the blocks, one by one, for the shapes of the run."""

REQUIRED = ("distributed_type", "num_processes", "mixed_precision")

PLACES = {
    "num_machines": "NNODES",
    "machine_rank": "NODE_RANK",
    "main_process_ip": "MASTER_ADDR",
    "main_process_port": "MASTER_PORT",
}
"""What each machine may say in its environment, by torch's names, over a file for several machines: one file serves all."""


ASKED_PRECISION = "TRAINER_ASKED_PRECISION"
"""The variable that tells the ranks which precision the cluster file asks for, where `accelerate launch` had to be given another."""


@dataclass(frozen=True)
class Cluster:
    """What a cluster file asks for."""

    path: Path
    num_processes: int
    precision: str
    use_cpu: bool
    num_machines: int = 1
    machine_rank: int = 0
    """This machine's number; the first one decides what all do."""
    is_sharded: bool = False
    """Whether each process holds a part of the model (FSDP), and not all of it."""
    compiler: str = "no"
    """torch.compile's backend; `no` for none."""
    options: tuple[str, ...] = ()
    """The arguments of `accelerate launch` besides the file, so that it does what the file says."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables that the launch is given for what the launcher does not read in the file, or refuses."""

    @property
    def num_local_processes(self) -> int:
        """Processes on each machine."""
        return self.num_processes // self.num_machines


def clusters_folder() -> Path:
    """Where the cluster files are: in the checkout, or in the package, whose link to them became copies when a wheel was built."""
    return (files.checkout_folder() or files.PACKAGE) / "accelerate_configs"


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
            f"unknown cluster file {name!r}; {did_you_mean(name, known)} (or give the path of a YAML file; the shipped ones are in "
            f"{clusters_folder()})"
        )
    remedy = "fix it or write one with `accelerate config`"
    document = read_document(path, f"cluster file {path}", _kind_of, yaml.SafeLoader, remedy)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))  # which also knows merge keys, as Accelerate does
    placed, unfit = _placed(content, os.environ)
    content.update(placed)
    if problems := _cluster_problems(path, content, document) + unfit:
        raise ConfigError(*problems)
    num_processes, num_machines = content.get("num_processes", 1), content.get("num_machines", 1)
    precision, compiler = (
        _no_or_word(word) for word in (content["mixed_precision"], compiler_settings(content).get("backend", "no"))
    )
    use_cpu = content.get("use_cpu") is True or content["distributed_type"] == "MULTI_CPU"
    here = tuple(word for key, value in placed.items() if value is not None for word in (f"--{key}", str(value)))
    return Cluster(
        path,
        num_processes,
        precision,
        use_cpu,
        num_machines,
        machine_rank=content.get("machine_rank") or 0,
        is_sharded=content["distributed_type"] == "FSDP",
        compiler=compiler,
        options=(*_options(content), *here),
        environment=_environment(content),
    )


def missing_compiler() -> str | None:
    """Why torch.compile cannot work on this machine's CPUs; None when it can."""
    if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
        return None
    return "a C++ compiler (g++) is needed, and none is installed"


def write_variant(cluster: Cluster, path: Path, *, precision: str, compiled: bool) -> None:
    """Writes the same cluster file with another precision, compiled or not: as the file says where it compiles, and by blocks where it does not."""
    content = yaml.safe_load(cluster.path.read_text(encoding="utf-8"))
    own = {f"dynamo_{key}": value for key, value in compiler_settings(content).items()}
    for key in ("dynamo_config", "dynamo_backend"):
        content.pop(key, None)
    if compiled:
        content["dynamo_config"] = own if str(own.get("dynamo_backend", "no")).lower() != "no" else COMPILED
    files.write_atomic(path, yaml.safe_dump({**content, "mixed_precision": precision}, sort_keys=False))


def _kind_of(key: str) -> Kind:
    return KEYS[key].kind if key in KEYS else "any"


def _cluster_problems(path: Path, content: dict[str, Any], document: Document) -> list[str]:
    # Accelerate does not know a bare NO, which YAML reads as false, for one process.
    is_single = content.get("distributed_type") == "NO"
    problems = [
        f"cluster file {path} lacks {key}; see {clusters_folder()} for complete ones"
        for key in REQUIRED
        if key not in content and not (key == "num_processes" and is_single)
    ]

    def place(key: str) -> str:
        line = document.places.get(key, "").rpartition(":")[2]
        return f"cluster file {path}{':' if line else ''}{line}: "

    if problems or content.get("compute_environment") == "AMAZON_SAGEMAKER":  # whose keys are others
        content = {key: value for key, value in content.items() if key == "compute_environment"}
    clear = {key: value for key, value in content.items() if key not in document.problems}
    ambiguous = [f"cluster file {path}: {words}" for key, words in document.problems.items() if key in content]
    return problems + ambiguous + key_problems(clear, place)


def _placed(content: dict[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What the environment says of a file for several machines, by the file's keys, and what is wrong with it."""
    if not isinstance(content, dict) or not is_whole(machines := content.get("num_machines", 1)) or machines < 2:
        return {}, []
    given = {key: environment[name].strip() for key, name in PLACES.items() if environment.get(name, "").strip()}
    unfit = [key for key in given if key != "main_process_ip" and not given[key].isdecimal()]
    problems = [f"the variable {PLACES[key]} is {given[key]!r}, but should be a whole number" for key in unfit]
    found: dict[str, Any] = {
        key: text if key == "main_process_ip" else int(text) for key, text in given.items() if key not in unfit
    }
    if (here := found.get("num_machines")) and is_whole(processes := content.get("num_processes")):
        found["num_processes"] = processes // machines * here
    if found.get("num_machines") == 1:
        found["main_process_ip"] = None  # which is for several
    return found, problems


def _no_or_word(value: Any) -> str:
    """A word in lower case; YAML reads a bare `no` as False."""
    return "no" if value is False else str(value).lower()


def _options(content: dict[str, Any]) -> tuple[str, ...]:
    """The arguments of the launcher besides the file.

    Its way for `NO` leaves the trainer behind on SIGTERM, and that for MULTI_CPU starts one process; both are one to it with MULTI_GPU,
    as which the shipped files start processes on CPUs too. It takes `gpu_ids` for several GPUs only, breaks on a bare `no` for the
    compiler, and does not read `rdzv_backend` in a file.
    """
    options: list[str] = []
    if content["distributed_type"] not in ("MULTI_GPU", "FSDP"):
        options += ["--multi_gpu"]
        if content.get("main_process_port") is None and content.get("num_machines", 1) == 1:
            options += ["--main_process_port", "0"]
    if content.get("gpu_ids") not in (None, "all"):
        options += ["--gpu_ids", "all"]
    if compiler_settings(content).get("backend") is False:
        options += ["--dynamo_backend", "no"]
    if content.get("rdzv_backend") not in (None, "static"):
        options += ["--rdzv_backend", content["rdzv_backend"]]
    return tuple(options)


def _environment(content: dict[str, Any]) -> dict[str, str]:
    """The variables for what the launcher does not pass on: GPUs by number for a single process, and NUMA affinity."""
    named = content.get("gpu_ids")
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpu_ids(named))} if named not in (None, "all") else {}
    return {**visible, **({"ACCELERATE_CPU_AFFINITY": "1"} if content.get("enable_cpu_affinity") else {})}
