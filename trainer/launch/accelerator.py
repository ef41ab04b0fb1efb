"""Makes the one Accelerator of this process, and nobody else does; what it computes on and in."""

import os
import random
import warnings
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TERecipeKwargs
from accelerate.utils.launch import setup_fp8_env
from torch.distributed.fsdp import MixedPrecisionPolicy

from trainer.errors import LaunchError
from trainer.launch.compile_choice import choose_compiler
from trainer.launch.environment import LaunchEnv, Sharding
from trainer.launch.logging_setup import warn_once_per_machine
from trainer.launch.process_group import GROUP_TIMEOUT, init_process_group
from trainer.text import numbered

FP8_SETTINGS = "ACCELERATE_FP8_"
"""How the names begin in which `accelerate launch` passes on what the cluster file says about fp8."""

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)

PARAMETERS_IN = {"bf16": torch.bfloat16}
"""In what a sharded model's weights are gathered and multiplied, by precision; what is not here, in the fp32 in which they are kept."""


def make_accelerator(
    place: LaunchEnv,
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
    init_process_group(place, deterministic=deterministic)
    _drop_fp8_settings()
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "1"  # the loop accumulates itself
    os.environ.pop("ACCELERATE_USE_PARALLELISM_CONFIG", None)  # what is left of it asks for nothing
    choose_compiler(uncompiled, place.use_cpu)
    # Every rank computes the same buffers (rotary tables), so none has to be sent round; torch warns of a coming other name for that.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    plugin = _fsdp_plugin(place.sharding, precision) if place.sharding else None
    accelerator = Accelerator(
        cpu=place.use_cpu,
        fsdp_plugin=plugin,
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=str(runs_folder),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=GROUP_TIMEOUT),
            # Or it would take whichever fp8 library it finds first.
            *([TERecipeKwargs()] if precision == "fp8" else []),
        ],
    )
    if plugin is not None:
        _make_sharded(accelerator, plugin)
    if accelerator.device.type == "cuda":
        # Accelerate allows TF32 where it compiles and mixed_precision is no, and forbids it nowhere.
        torch.backends.cuda.matmul.allow_tf32 = tf32
    if accelerator.num_processes != place.world_size:
        raise LaunchError(
            f"the launch is of {numbered(place.world_size, 'process')}, but this one found itself in a group of {accelerator.num_processes}; "
            "for several processes on CPUs use the shipped cluster file cpu_2proc as the pattern"
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise LaunchError(
            f"the cluster file makes a {accelerator.distributed_type.value} group, in which this trainer does not train; set distributed_type: "
            "MULTI_GPU, or FSDP with fsdp_version: 2"
        )
    seed_streams(seed, accelerator.process_index)
    return accelerator


def _fsdp_plugin(sharding: Sharding, precision: str) -> FullyShardedDataParallelPlugin:
    """Everything that Accelerate would otherwise read from its environment, whose defaults are not ours.

    Weights are gathered in bf16, and gradients summed in fp32. What goes from one block to the next stays in the type that autocast gives it
    (parallel.Sharded): Accelerate's own policy rounds it, the loss and the sums of gradients to bf16.
    """
    compute = PARAMETERS_IN.get(precision)
    policy = MixedPrecisionPolicy(compute, torch.float32, torch.float32, cast_forward_inputs=False) if compute else None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=sharding.reshard_after_forward,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(sharding.block_classes) or None,
        mixed_precision_policy=policy,
        state_dict_type="SHARDED_STATE_DICT",
        cpu_offload=False,
        activation_checkpointing=False,
        # Each rank builds the same weights from the seed, or reads the same file, and keeps its part.
        cpu_ram_efficient_loading=False,
    )


def _make_sharded(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Sees to it that the cluster file's FSDP is what the model gets: Accelerate shards on GPUs only, and elsewhere trains without a word.

    raises  LaunchError where the model would not be sharded
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU:  # the way of the tests
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    if not accelerator.is_fsdp2:
        raise LaunchError(
            f"the cluster file asks for FSDP, and Accelerate would not shard the model here (it makes a {accelerator.distributed_type.value} group of "
            f"{numbered(accelerator.num_processes, 'process')}); write distributed_type: MULTI_GPU, or start several processes with accelerate launch"
        )


def seed_streams(seed: int, rank: int) -> None:
    """Starts every random stream of this rank from (seed, rank)."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def device_words(accelerator: Accelerator) -> str:
    """Where the run computes, as words."""
    device, threads, processes = accelerator.device, torch.get_num_threads(), accelerator.num_processes
    cpu = f"CPU with {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    sharded = ", the model sharded over them" if accelerator.distributed_type == DistributedType.FSDP else ""
    return f"{numbered(processes, 'process')} on {name}{' each' if processes > 1 else ''}{sharded}"


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """The type in which matrix products are computed outside fp8 layers."""
    return {"no": torch.float32, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.bfloat16)


def wait_for_device(device: torch.device) -> None:
    """Waits until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _drop_fp8_settings() -> None:
    """Takes away what a bare `accelerate launch` passes on of a cluster file's fp8_config, and tells what somebody had set there.

    prepare() would convert the model by these even under another precision; how fp8 is computed stands in the recipe.
    """
    found = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(FP8_SETTINGS)}
    if not found:
        return
    backend = f"{FP8_SETTINGS}BACKEND"
    unsaid = {backend: found.get(backend), **setup_fp8_env(launch_command_parser().parse_args(["script"]), {})}
    said = [name for name, value in found.items() if value != unsaid.get(name)]
    if settings := sorted(name.removeprefix(FP8_SETTINGS).lower() for name in said):
        warn_once_per_machine(
            "fp8_config.%s of the cluster file is not read: the recipe sets up fp8 (precision.recipe, precision.format, precision.options)",
            ", fp8_config.".join(settings),
        )
