"""This process's place among the others: device, threads, determinism, seeds, logging. Makes the Accelerator, and nobody else does."""

import ctypes
import logging
import os
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, TERecipeKwargs, broadcast_object_list
from accelerate.utils.launch import setup_fp8_env

from trainer import determinism
from trainer.config.cluster import missing_compiler
from trainer.errors import LaunchError, TrainerError
from trainer.text import numbered

log = logging.getLogger(__name__)

T = TypeVar("T")

ASKED_PRECISION = "TRAINER_ASKED_PRECISION"
"""Set by `launch.sh` when it had to give `accelerate launch` another precision than the cluster file asks for."""

FP8_SETTINGS = "ACCELERATE_FP8_"
"""How the names begin in which `accelerate launch` passes on what the cluster file says about fp8."""

GROUP_TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other: rank 0 alone verifies and commits checkpoints, and those of large models take minutes."""

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What `accelerate launch` says that a cluster file asks for, in variables ACCELERATE_USE_*."""

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


@dataclass(frozen=True)
class Asked:
    """What the cluster file asks of this process, as `accelerate launch` passes it on."""

    precision: str
    use_cpu: bool
    world_size: int
    is_main: bool


def asked() -> Asked:
    """Reads what `accelerate launch` put into the environment; a plain `python -m trainer` is one process in fp32.

    raises  LaunchError when it asks for what is not done here, or for GPUs that torch cannot use
    """
    for name in SHARDING:  # on CPUs Accelerate would make data parallelism of it without a word
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise LaunchError(
                f"the cluster file asks for {name}, and this version trains with data parallelism only, where each process holds the whole "
                "model; write distributed_type: MULTI_GPU, and remove its section"
            )
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1") or not torch.cuda.is_available()
    if use_cpu and ASKED_PRECISION in os.environ and "ACCELERATE_USE_CPU" not in os.environ:
        raise LaunchError(
            "the cluster file is for GPUs, and torch finds none it can use (torch.cuda.is_available() is false: a driver older than this "
            "torch wants, a torch without CUDA, or no GPU); fix that, or take the cluster file cpu"
        )
    precision = os.environ.get(ASKED_PRECISION) or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return Asked(
        precision,
        use_cpu,
        int(os.environ.get("WORLD_SIZE", "1")),
        os.environ.get("RANK", "0") == "0",
    )


def first_before_joining(work: Callable[[], T]) -> T | None:
    """Does `work` on rank 0 before the ranks join; the others wait, and get None. Where rank 0 ends by an error, its launcher ends them.

    They would do nothing else but wait within torch's meeting, where no signal reaches them: the launcher would kill them 30 seconds later.

    raises  LaunchError on another rank when the launcher of rank 0, which keeps the word between them, is gone
    """
    is_main, store = os.environ.get("RANK", "0") == "0", _launchers_store()
    result = work() if is_main else None
    if store is None:
        return result
    word = f"trainer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/may join"
    try:
        if is_main:
            store.set(word, b"")
        while not store.check([word]):
            time.sleep(0.05)
    except RuntimeError as error:
        raise LaunchError(
            f"the launcher of rank 0 is gone before the ranks had met ({str(error).splitlines()[0]}); see what rank 0 says, and start again"
        ) from None
    return result


def others_wait() -> bool:
    """Whether the launcher keeps a store for its ranks, so that the others wait in `first_before_joining`; not for a process that is alone."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True) and os.environ.get("WORLD_SIZE", "1") != "1"


def _launchers_store() -> torch.distributed.TCPStore | None:
    """The store that the launcher keeps for its ranks; None for a process that is alone, or was launched in another way."""
    if not others_wait():
        return None
    return torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def meet(place: Asked, *, deterministic: bool) -> torch.device:
    """Forms the group of processes, in which the ranks may agree on something before the Accelerator is made; returns this process's device."""
    torch.set_num_threads(num_threads())
    if deterministic:
        determinism.make_deterministic()
    return PartialState(cpu=place.use_cpu, timeout=GROUP_TIMEOUT).device


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def start(
    place: Asked,
    *,
    precision: str,
    deterministic: bool,
    seed: int,
    trackers: list[str],
    runs_folder: Path,
    uncompiled: str | None = None,
    tf32: bool = False,
) -> Accelerator:
    """Makes the one Accelerator of this process, in a group of exactly the size that was launched.

    tf32         whether matrix products in fp32 may take a GPU's TF32
    uncompiled   why torch.compile is left out though the cluster file may ask for it
    raises       LaunchError when the processes did not find each other, or form a kind of group this trainer does not train in
    """
    meet(place, deterministic=deterministic)
    _forget_fp8_settings()
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "1"  # the loop accumulates itself
    _choose_compiler(uncompiled, place.use_cpu)
    # Every rank computes the same buffers (rotary tables), so none has to be sent round; torch warns of a coming other name for that.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    accelerator = Accelerator(
        cpu=place.use_cpu,
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=str(runs_folder),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=GROUP_TIMEOUT),
            *(
                [TERecipeKwargs()] if precision == "fp8" else []
            ),  # or it would take whichever fp8 library it finds first
        ],
    )
    if (
        accelerator.device.type == "cuda"
    ):  # Accelerate allows TF32 where it compiles and mixed_precision is no, and forbids it nowhere
        torch.backends.cuda.matmul.allow_tf32 = tf32
    if accelerator.num_processes != place.world_size:
        raise LaunchError(
            f"the launch is of {numbered(place.world_size, 'process')}, but this one found itself in a group of {accelerator.num_processes}; "
            "for several processes on CPUs use the shipped cluster file cpu_2proc as the pattern"
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise LaunchError(
            f"the cluster file makes a {accelerator.distributed_type.value} group, and this version trains with data parallelism only; "
            "set distributed_type: MULTI_GPU"
        )
    seed_streams(seed, accelerator.process_index)
    return accelerator


def decided_precision() -> str:
    """What `start` made the Accelerator of this process in; before that, what `accelerate launch` passed on."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def first_on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Does `work` on rank 0, then on the others; its TrainerError there is everyone's, so that nobody waits for a rank that gave up."""
    outcome: list[Any] = [None]
    result = None
    if accelerator.is_main_process:
        try:
            result = work()
        except TrainerError as error:
            outcome = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]
    return result if accelerator.is_main_process else work()


def seed_streams(seed: int, rank: int) -> None:
    """Starts every random stream of this rank from (seed, rank)."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def num_threads() -> int:
    """Threads for this process: what OMP_NUM_THREADS says, or the cores it may use, shared among the processes of this machine.

    `accelerate launch` sets OMP_NUM_THREADS to 1 when nobody has chosen, so under it a 1 does not count as a choice.
    """
    chosen = int(os.environ.get("OMP_NUM_THREADS") or 0)
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if chosen > 1 or (chosen == 1 and not launched):
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


def open_log(folder: Path, *, is_main: bool, console: logging.Handler) -> None:
    """Sends the story of the run to the console and, from the main process, to train.log; other ranks tell warnings only."""
    logging.raiseExceptions = (
        False  # a full disk stops train.log; the console goes on without a traceback for each line
    )
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO if is_main else logging.WARNING)
    rank = os.environ.get("RANK", "0")
    place = "" if is_main else f"[rank {rank}] "
    console.setFormatter(logging.Formatter(f"%(asctime)s {place}%(message)s", "%H:%M:%S"))
    console.addFilter(_is_news)
    root.addHandler(console)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        file.addFilter(_is_news)
        root.addHandler(file)


def _is_news(record: logging.LogRecord) -> bool:
    """Leaves out what Accelerate warns of at every save of a model with tied embeddings: the tie is kept, and a test holds that."""
    return "Removed shared tensor" not in record.getMessage()


def describe(accelerator: Accelerator) -> str:
    """Where the run computes, as words."""
    device = accelerator.device
    threads = torch.get_num_threads()
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU with {threads} thread{'s' if threads > 1 else ''}"
    )
    processes = accelerator.num_processes
    return f"{numbered(processes, 'process')} on {name}{' each' if processes > 1 else ''}"


def compile_backend(accelerator: Accelerator) -> str:
    """The torch.compile backend that the cluster file chose; `no` for none."""
    return accelerator.state.dynamo_plugin.backend.value.lower()


def wait_for_device(device: torch.device) -> None:
    """Waits until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def determinism_report(
    accelerator: Accelerator,
    deterministic: bool,
    model: Any,
    micro_batch: int,
    sequence_length: int,
    one_pass: Callable[[], None],
) -> str:
    """What `deterministic` gives and costs here, in one line; see trainer/determinism.py."""
    dtype = {"no": torch.float32, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.bfloat16)
    return determinism.report(deterministic, accelerator.device, dtype, model, micro_batch, sequence_length, one_pass)


def _forget_fp8_settings() -> None:
    """Takes away what a bare `accelerate launch` passes on of a cluster file's fp8_config, and tells what somebody had set there.

    prepare() would convert the model by these even under another precision; how fp8 is computed stands in the recipe.
    """
    found = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(FP8_SETTINGS)}
    if not found:
        return
    unsaid = {
        f"{FP8_SETTINGS}BACKEND": found.get(f"{FP8_SETTINGS}BACKEND"),
        **setup_fp8_env(launch_command_parser().parse_args(["script"]), {}),
    }
    settings = sorted(
        name.removeprefix(FP8_SETTINGS).lower() for name, value in found.items() if value != unsaid.get(name)
    )
    if settings:
        _warn_for_the_machine(
            "fp8_config.%s of the cluster file is not read: the recipe sets up fp8 (precision.recipe, precision.format, precision.options)",
            ", fp8_config.".join(settings),
        )


def _choose_compiler(uncompiled: str | None, use_cpu: bool) -> None:
    """Keeps the cluster file's torch.compile where it can work: on a CPU it needs a C++ compiler; `uncompiled` is another reason against it."""
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if without := left_uncompiled(backend, uncompiled, use_cpu):
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "no"
        _warn_for_the_machine(without)
    elif backend != "no":
        # Accelerate's regional compilation runs all regions, in training and in evaluation, through one code object, whose eighth
        # variant would silently run uncompiled.
        torch._dynamo.config.recompile_limit = 64
        # Or every compiled block would be split where DistributedDataParallel's buckets end (the first holds 1 MB), also with one process:
        # gradients leave block by block as it is.
        torch._dynamo.config.optimize_ddp = False


def _warn_for_the_machine(words: str, *values: str) -> None:
    """Warns of what all processes of a machine know alike, and those of another machine may not: the first of each says it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        log.warning(words, *values)


def left_uncompiled(backend: str, uncompiled: str | None, use_cpu: bool) -> str | None:
    """One line on why torch.compile is left out though the cluster file asks for this backend; None when it is not."""
    if backend == "no":
        return None
    why = uncompiled or (missing_compiler() if backend == "inductor" and use_cpu else None)
    return f"torch.compile is left out: {why}" if why else None


def finish_processes(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Waits for every rank and ends the group; after it no collective is possible. `model` is what `prepare` gave back."""
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        leave_group(model)


def leave_group(model: torch.nn.Module) -> None:
    """Ends the group of processes, and keeps what DistributedDataParallel holds of it until this process ends.

    Its reducer has a reference of its own to the group. Freed after the group was left, it would be the last one, and the group's
    destructor would wait for a thread of gloo while holding Python's lock, which that thread takes to free a tensor: now and then a
    finished run would never end. A reducer that is never freed leaves that work to the end of the process.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(model.reducer))
    torch.distributed.destroy_process_group()
