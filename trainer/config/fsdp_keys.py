"""The keys of a cluster file's fsdp_config and parallelism_config: each is honoured, or refused with what to do instead.

The model is sharded by torch's fully_shard (FSDP2) over all processes alike. A key at the value that means off passes, as at the top of the file.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.text import did_you_mean

Check = Callable[[Any], "str | None"]
"""A value -> what is wrong with it, as the words after `KEY is VALUE`; None when nothing is."""

OFF: tuple[Any, ...] = (None, False, "", "NO_PREFETCH", [], {})
"""What means that nothing is asked for."""


def _off(why: str) -> Check:
    return lambda value: None if value in OFF else f", and {why}"


def _truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else ", but should be true or false"


def _version(value: Any) -> str | None:
    return None if str(value) == "2" else ", and this trainer shards by version 2 of FSDP; write 2"


def _wrap_policy(value: Any) -> str | None:
    if str(value).upper() == "TRANSFORMER_BASED_WRAP":
        return None
    return ", and a model is gathered block by block here; write TRANSFORMER_BASED_WRAP"


def _classes(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.replace(",", "").strip()):
        return None
    return ", but should be the names of classes with commas between them, or be left out: then transformers names them"


def _state_dict_type(value: Any) -> str | None:
    if str(value).upper() == "SHARDED_STATE_DICT":
        return None
    return ", and checkpoints are this trainer's own; write SHARDED_STATE_DICT or remove it"


_OF_VERSION_1 = _off("it is of version 1 of FSDP, which this trainer does not use; remove it")

FSDP_KEYS: dict[str, Check] = {
    "version": _version,
    "reshard_after_forward": _truth,
    "auto_wrap_policy": _wrap_policy,
    "transformer_layer_cls_to_wrap": _classes,
    "state_dict_type": _state_dict_type,
    "cpu_ram_efficient_loading": _off(
        "each process builds the same weights, or reads the same file, and keeps its part; write false"
    ),
    "activation_checkpointing": _off(
        "Accelerate's recomputes dropout otherwise than it was and renames the weights; write false, and model.gradient_checkpointing=true "
        "in the recipe"
    ),
    "activation_checkpointing_offload": _off("activations stay on the GPU; write false"),
    "offload_params": _off(
        "weights and moments stay on the GPU; write false, and take more GPUs where they do not fit"
    ),
    "min_num_params": _off("blocks are found by their class and not by their size; remove it"),
    "ignored_modules": _off(
        "a module that is left out of the sharding would be trained by each process for itself; remove it"
    ),
    **dict.fromkeys(
        ("sharding_strategy", "backward_prefetch", "forward_prefetch", "use_orig_params", "sync_module_states"),
        _OF_VERSION_1,
    ),
}
"""Accelerate's keys without their `fsdp_`."""

_ONE_WAY = "a model is sharded over all processes alike; write 1, or remove the section"

PARALLEL_SIZES = {
    "tp_size": f"layers are not divided (tensor parallelism), and {_ONE_WAY}",
    "cp_size": f"sequences are not divided (context parallelism), and {_ONE_WAY}",
    "sp_size": f"sequences are not divided (sequence parallelism), and {_ONE_WAY}",
    "dp_replicate_size": f"this version makes no copies of a sharded model (HSDP), and {_ONE_WAY}",
}
"""Accelerate's sizes without their `parallelism_config_`, and why each is 1."""

OF_A_SIZE = (
    "cp_backend",
    "cp_comm_strategy",
    "sp_backend",
    "sp_seq_length",
    "sp_seq_length_is_variable",
    "sp_attn_implementation",
)
"""Keys that only say how what has a size of 1 would be done."""


def fsdp_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the two sections of a cluster file that says FSDP, as sentences that begin with the key."""
    section = content.get("fsdp_config")
    given = section if isinstance(section, dict) else {}
    settings = {str(key).removeprefix("fsdp_"): (key, value) for key, value in given.items()}
    if "version" not in settings:
        yield "fsdp_config.fsdp_version is not there, and Accelerate would take 1; write fsdp_config: {fsdp_version: 2}"
    for name, (key, value) in settings.items():
        if name not in FSDP_KEYS:
            yield f"fsdp_config.{key} is unknown; {did_you_mean(f'fsdp_{name}', [f'fsdp_{known}' for known in FSDP_KEYS])}"
        elif words := FSDP_KEYS[name](value):
            yield f"fsdp_config.{key} is {value!r}{words}"
    yield from _parallelism_problems(content)


def whole_compiled(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with a dynamo_config, by its names without `dynamo_`, beside FSDP: it must compile the blocks, or nothing."""
    is_off = str(settings.get("backend", "no")).upper() in ("NO", "FALSE")
    if is_off or settings.get("use_regional_compilation") is True:
        return None
    return (
        "dynamo_config.dynamo_use_regional_compilation is not true, and a sharded model is gathered block by block, so it is compiled so too; "
        "write true"
    )


def _parallelism_problems(content: Mapping[str, Any]) -> Iterator[str]:
    section, processes = content.get("parallelism_config"), content.get("num_processes")
    for key, value in section.items() if isinstance(section, dict) else ():
        name = str(key).removeprefix("parallelism_config_")
        place = f"parallelism_config.{key} is {value!r}"
        if name in PARALLEL_SIZES and value not in (None, 1):
            yield f"{place}, and {PARALLEL_SIZES[name]}"
        elif name == "dp_shard_size" and value not in (None, 1, processes):
            yield f"{place}, and num_processes is {processes}: {_ONE_WAY.replace('write 1', f'write {processes}')}"
        elif name not in (*PARALLEL_SIZES, *OF_A_SIZE, "dp_shard_size"):
            known = [f"parallelism_config_{each}" for each in (*PARALLEL_SIZES, "dp_shard_size")]
            yield f"parallelism_config.{key} is unknown; {did_you_mean(f'parallelism_config_{name}', known)}"
