"""What `accelerate launch` says to this process through its environment: precision, devices, its place among the others, its threads."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config.cluster import ASKED_PRECISION
from trainer.config.cluster_keys import NOT_SHARDED
from trainer.errors import LaunchError

NOT_DONE_HERE = {
    "DEEPSPEED": "DeepSpeed; write distributed_type: FSDP with fsdp_version: 2, or MULTI_GPU, and remove its section",
    "MEGATRON_LM": "Megatron-LM; write distributed_type: FSDP with fsdp_version: 2, or MULTI_GPU, and remove its section",
}
"""What `accelerate launch` says that a cluster file asks for, in variables ACCELERATE_USE_*, and is done by nobody here."""

_SIZES = "DP_REPLICATE_SIZE TP_SIZE CP_SIZE SP_SIZE"


@dataclass(frozen=True)
class Sharding:
    """How the model is divided among the processes (FSDP2), as the cluster file's fsdp_config says it."""

    reshard_after_forward: bool = True
    """Whether the gathered weights of a block are let go after its forward pass, and gathered once more for its backward pass."""
    block_classes: tuple[str, ...] = ()
    """The classes of the modules that are gathered one at a time; empty: those that transformers names for the model."""

    @classmethod
    def from_env(cls) -> "Sharding | None":
        """What `accelerate launch` passes on of a section fsdp_config; None where the cluster file does not ask for FSDP. raises LaunchError"""
        if sizes := [name for name in _SIZES.split() if os.environ.get(f"PARALLELISM_CONFIG_{name}", "1") != "1"]:
            raise LaunchError(
                f"the cluster file asks for a parallelism_config with {', '.join(map(str.lower, sizes))} above 1, and this version shards a model over "
                "all processes alike; remove it"
            )
        if not _is_set("ACCELERATE_USE_FSDP"):
            return None
        if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise LaunchError(
                f"the cluster file asks for version {version} of FSDP, and this trainer shards by version 2; write fsdp_config: {{fsdp_version: 2}}"
            )
        named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
        classes = tuple(name.strip() for name in named.split(",") if name.strip())
        return cls(os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false", classes)


@dataclass(frozen=True)
class LaunchEnv:
    """What the cluster file asks of this process, as `accelerate launch` passes it on."""

    precision: str
    use_cpu: bool
    world_size: int
    is_main: bool
    sharding: Sharding | None = None
    """None where each process holds the whole model."""

    @classmethod
    def from_env(cls) -> "LaunchEnv":
        """Reads what `accelerate launch` put into the environment; a plain `python -m trainer` is one process in fp32.

        raises  LaunchError when it asks for what is not done here, or for GPUs that torch cannot use
        """
        for name, words in NOT_DONE_HERE.items():  # on CPUs Accelerate would make data parallelism of it without a word
            if _is_set(f"ACCELERATE_USE_{name}"):
                raise LaunchError(f"the cluster file asks for {name}, and this trainer does not train with {words}")
        use_cpu = _is_set("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        if use_cpu and ASKED_PRECISION in os.environ and "ACCELERATE_USE_CPU" not in os.environ:
            raise LaunchError(
                "the cluster file is for GPUs, and torch finds none it can use (torch.cuda.is_available() is false: a driver older than this "
                "torch wants, a torch without CUDA, or no GPU); fix that, or take the cluster file cpu"
            )
        precision = os.environ.get(ASKED_PRECISION) or decided_precision()
        world_size, is_main = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
        sharding = Sharding.from_env()
        if sharding and precision in NOT_SHARDED:
            raise LaunchError(f"the cluster file asks for FSDP in {precision}, and {NOT_SHARDED[precision]}")
        return cls(precision, use_cpu, world_size, is_main, sharding)


def decided_precision() -> str:
    """What `make_accelerator` made the Accelerator of this process in; before that, what `accelerate launch` passed on, or `no`."""
    return _launched_precision() or "no"


def _launched_precision() -> str | None:
    """What `accelerate launch`, and later `make_accelerator`, put into the environment; None where neither has."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def others_wait() -> bool:
    """Whether the launcher keeps a store for its ranks, so that the others wait in `rank0_before_init`; not for a process that is alone."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True) and os.environ.get("WORLD_SIZE", "1") != "1"


def num_threads() -> int:
    """Threads for this process: what OMP_NUM_THREADS says, or the cores it may use, shared among the processes of this machine.

    `accelerate launch` sets OMP_NUM_THREADS to 1 when nobody has chosen, so under it a 1 does not count as a choice.
    """
    chosen = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if chosen > 1 or (chosen == 1 and _launched_precision() is None):
        return chosen
    return max(1, num_cores() // num_local_processes())


def num_local_processes() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def num_cores() -> int:
    """Cores this process may use: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
