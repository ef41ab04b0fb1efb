"""Every key of a cluster file: what it may say here. The file is Accelerate's, and Accelerate reads or drops each key in its own way.

A key that asks for something nobody honours is refused by name. One at the value that means off, or at Accelerate's default, passes:
`accelerate config` writes them all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.fsdp_keys import fsdp_problems, whole_compiled
from trainer.config.plain import Kind
from trainer.config.settings import settings_help
from trainer.config.synonyms import synonym_of
from trainer.text import did_you_mean

MODES = ("no", "bf16", "fp16", "fp8")
"""What `mixed_precision` may be."""

DATA_PARALLEL = ("MULTI_GPU", "MULTI_CPU", "NO", "FSDP")
"""What `distributed_type` may be: several processes, several on CPUs, one, or several of which each holds a part of the model."""

OTHER_SHARDING = {"DEEPSPEED": "deepspeed_config", "MEGATRON_LM": "megatron_lm_config"}
"""Other kinds of training in which a process holds a part of the model, with the section that each has."""

OTHER_MACHINES = ("MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON", "XLA")

KINDS = {
    **{name: name for name in (*DATA_PARALLEL, *OTHER_SHARDING, *OTHER_MACHINES)},
    **{"FSDP2": "FSDP", "FSDP1": "FSDP", "ZERO": "DEEPSPEED", "MEGATRON": "MEGATRON_LM"},
    **{"DDP": "MULTI_GPU", "GPU": "MULTI_GPU", "DATA_PARALLEL": "MULTI_GPU", "CPU": "MULTI_CPU"},
    **{"TPU": "XLA", "NONE": "NO"},
}
"""What is meant by a `distributed_type` that is spelt otherwise, or called as elsewhere."""

MEANT_PRECISION = {
    **dict.fromkeys(("fp32", "float32", "32", "32-true", "full", "none", "off", "tf32"), "no"),
    **dict.fromkeys(("bfloat16", "bf16-mixed", "bf16-true"), "bf16"),
    **dict.fromkeys(("float16", "half", "16", "16-mixed", "16-true"), "fp16"),
    **dict.fromkeys(("float8", "transformer-engine"), "fp8"),
}
"""What torch, Lightning and litgpt call a precision."""

_COMPILERS = """
NO EAGER AOT_EAGER INDUCTOR AOT_TS_NVFUSER NVPRIMS_NVFUSER CUDAGRAPHS OFI FX2TRT ONNXRT TENSORRT AOT_TORCHXLA_TRACE_ONCE
TORCHXLA_TRACE_ONCE TVM HPU_BACKEND NEURON
"""
COMPILERS = tuple(_COMPILERS.split())
"""The backends of torch.compile that Accelerate knows."""

NOT_SHARDED = {
    "fp16": "a sharded model is not trained in fp16, whose scaler skips steps by each process's own part; use bf16",
    "fp8": "a sharded model is not trained in fp8 in this version; use bf16",
}
"""Precisions that a sharded model is not trained in, and why."""

COMPILER_MODES = ("default", "reduce-overhead", "max-autotune")

FP8_DEFAULTS = {
    "use_autocast_during_eval": (False,),
    "margin": (0,),
    "interval": (1,),
    "fp8_format": ("HYBRID",),
    "format": ("HYBRID",),
    "amax_history_len": (1024,),
    "amax_history_length": (1024,),
    "amax_compute_algo": ("max", "most_recent"),
    "amax_compute_algorithm": ("max", "most_recent"),
    "override_linear_precision": (False, [False, False, False]),
}
"""What `accelerate config` writes of TransformerEngine when every question is answered by Enter, under its names and Accelerate's own."""

Content = Mapping[str, Any]
Check = Callable[[Any, Content], "str | None"]
"""(value, the whole file) -> what is wrong with the value, as the words after `KEY is VALUE`; None when nothing is."""


@dataclass(frozen=True)
class Key:
    """One key at the top of a cluster file."""

    check: Check
    kind: Kind = "any"


def key_problems(content: Content, place: Callable[[str], str]) -> list[str]:
    """Everything that is wrong with the keys of a cluster file, as sentences.

    place   where a key (`fp8_config.margin`) stands, as words before a sentence about it
    """
    problems = []
    for name, value in ((str(key), value) for key, value in content.items()):
        if name not in KEYS:
            problems.append(f"{place(name)}unknown key {name}; {_where_it_belongs(name)}")
        elif words := KEYS[name].check(value, content):
            problems.append(f"{place(name)}{name} is {value!r}{words}")
    inside = [*unheard(content.get("fp8_config")), *_compiler_problems(content.get("dynamo_config"))]
    if content.get("distributed_type") == "FSDP":
        inside += [*fsdp_problems(content), *filter(None, [whole_compiled(compiler_settings(content))])]
    return problems + [f"{place(what.split()[0])}{what}" for what in inside]


def unheard(fp8_config: Any) -> list[str]:
    """What a cluster file's fp8_config says and nothing would listen to, as sentences; Accelerate itself drops half of its keys."""
    settings = {str(key): value for key, value in fp8_config.items()} if isinstance(fp8_config, dict) else {}
    problems = [
        f"fp8_config.{key} is not read, since the recipe sets up fp8 (precision.recipe, precision.format, precision.options); remove it here"
        for key, value in settings.items()
        if key not in ("backend", "fp8_backend")
        and value not in FP8_DEFAULTS.get(key.removeprefix("fp8_"), FP8_DEFAULTS.get(key, ()))
    ]
    only = "and this trainer computes fp8 with TransformerEngine only; use TE"
    named = {key: settings[key] for key in ("backend", "fp8_backend") if key in settings}
    return problems + [f"fp8_config.{key} is {it!r}, {only}" for key, it in named.items() if str(it).upper() != "TE"]


def compiler_settings(content: Content) -> dict[str, Any]:
    """What a cluster file says of torch.compile, under the names without `dynamo_`; Accelerate takes both, and an older form at the top."""
    settings = content.get("dynamo_config")
    settings = settings if isinstance(settings, dict) else {}
    older = {"backend": content["dynamo_backend"]} if "dynamo_backend" in content else {}
    return older or {str(key).removeprefix("dynamo_"): value for key, value in settings.items()}


def _compiler_problems(settings: Any) -> Iterator[str]:
    for key, value in settings.items() if isinstance(settings, dict) else ():
        name = str(key).removeprefix("dynamo_")
        if name not in COMPILER_KEYS:
            hint = did_you_mean(f"dynamo_{name}", [f"dynamo_{known}" for known in COMPILER_KEYS])
            yield f"dynamo_config.{key} is unknown; {hint}"
        elif words := COMPILER_KEYS[name](value, settings):
            yield f"dynamo_config.{key} is {value!r}{words}"


def _where_it_belongs(name: str) -> str:
    """Help after an unknown key: many a setting is the recipe's."""
    ours = [key for key, _, _ in settings_help() if key == name or key.endswith(f".{name}")]
    if ours:
        return f"the recipe has {ours[0]}; remove it here"
    synonym = synonym_of(name)
    return f"{synonym.words}; remove it here" if synonym and not synonym.in_cluster_file else did_you_mean(name, KEYS)


# What a value may be


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; YAML's true is none, though Python counts with it."""
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int, most: int | None = None) -> Check:
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"

    def check(value: Any, content: Content) -> str | None:
        fits = is_whole(value) and least <= value and (most is None or value <= most)
        return None if fits else f", but should be a whole number {limits}"

    return check


def _truth(value: Any, content: Content) -> str | None:
    return None if value is None or isinstance(value, bool) else ", but should be true or false"


def _one_of(words: tuple[str, ...]) -> Check:
    def check(value: Any, content: Content) -> str | None:
        word = "no" if value is False else str(value)
        return None if word.upper() in {each.upper() for each in words} else f"; {did_you_mean(word, words)}"

    return check


def _mixed_precision(value: Any, content: Content) -> str | None:
    if content.get("distributed_type") == "FSDP" and str(value).lower() in NOT_SHARDED:
        return f", and {NOT_SHARDED[str(value).lower()]}"
    words = _one_of(MODES)(value, content)
    meant = MEANT_PRECISION.get(str(value).lower())
    return f"; did you mean {meant!r}?" if words and meant else words


def _off(why: str, *also: Any) -> Check:
    """A key that nobody honours here: only what means off passes, and what else does."""

    def check(value: Any, content: Content) -> str | None:
        is_off = value in (None, False, "no", "", [], [""], {}) or (value in also and not isinstance(value, bool))
        return None if is_off else f", and {why}; remove it"

    return check


def _distributed_type(value: Any, content: Content) -> str | None:
    name = "NO" if value is False else str(value)
    kind = KINDS.get(name.upper().replace("-", "_"), name)
    processes = content.get("num_processes", 1)
    if name == "NO" and processes != 1 and is_whole(processes):
        return f", which is one process, and num_processes is {processes}; use MULTI_GPU for several"
    if name in DATA_PARALLEL:
        return None
    if kind in OTHER_SHARDING:
        return (
            ", and this trainer shards a model with FSDP, version 2; use FSDP with fsdp_config: {fsdp_version: 2}, or MULTI_GPU, where each "
            f"process holds the whole model, and remove {OTHER_SHARDING[kind]}"
        )
    if kind in OTHER_MACHINES:
        return ", and this trainer runs on NVIDIA GPUs and on CPUs; use MULTI_GPU, with use_cpu: true for CPUs"
    return f"; {did_you_mean(kind, DATA_PARALLEL)}"


def _num_machines(value: Any, content: Content) -> str | None:
    processes = content.get("num_processes")
    if (words := _whole(1)(value, content)) or not isinstance(processes, int) or not is_whole(processes):
        return words
    if processes < 1 or not processes % value:
        return words
    return f", and num_processes is {processes}, but should be a multiple of num_machines, which is {value}: it counts the processes of all machines"


def _several_machines(content: Content) -> bool:
    machines = content.get("num_machines", 1)
    return is_whole(machines) and machines > 1


def _machine_rank(value: Any, content: Content) -> str | None:
    machines = content.get("num_machines", 1)
    return _whole(0, machines - 1 if is_whole(machines) and machines > 0 else None)(value, content)


def _main_process_port(value: Any, content: Content) -> str | None:
    if value is None:
        return None
    if _several_machines(content) and value == 0 and is_whole(value):
        return ", which lets each machine choose a port of its own, and they would never meet; name one port for all"
    return _whole(0, 65535)(value, content)


def _main_process_ip(value: Any, content: Content) -> str | None:
    if not _several_machines(content):
        is_local = value in (None, "127.0.0.1", "localhost")
        return None if is_local else ", which is for several machines, and num_machines is 1; remove it"
    is_address = value and isinstance(value, str)
    return None if is_address else ", but should be the address of the machine with machine_rank 0"


def _rdzv_backend(value: Any, content: Content) -> str | None:
    if value in (None, "static") or (value == "c10d" and _several_machines(content)):
        return None
    return ", but should be static" + (" or c10d" if _several_machines(content) else ", as num_machines is 1")


def _gpu_ids(value: Any, content: Content) -> str | None:
    if value in (None, "all"):
        return None
    ids = gpu_ids(value)
    if not ids or not all(ids) or len(set(ids)) < len(ids) or isinstance(value, (bool, list, dict, float)):
        return ", but should be all, or different GPUs by number with commas between them, in quotes: '0,2'"
    if content.get("use_cpu") is True:
        return ", and use_cpu is true; remove one of the two"
    processes, machines = content.get("num_processes", 1), content.get("num_machines", 1)
    if is_whole(processes) and is_whole(machines) and machines > 0 and len(ids) < processes // machines:
        return f", fewer GPUs than the {processes // machines} processes of a machine; name as many, or write all"
    return None


def gpu_ids(value: Any) -> list[str]:
    """The GPUs that `gpu_ids` names, one by one."""
    return [part.strip() for part in str(value).split(",")]


def _affinity(value: Any, content: Content) -> str | None:
    if value is True and content.get("use_cpu") is True:
        return ", which is for GPUs, and use_cpu is true; remove one of the two"
    return _truth(value, content)


def _fp16(value: Any, content: Content) -> str | None:
    if value in (None, False) or str(content.get("mixed_precision")).lower() == "fp16":
        return None
    return ", and mixed_precision says otherwise; remove it, and write mixed_precision: fp16 if that is meant"


def _section(value: Any, content: Content) -> str | None:
    return None if value is None or isinstance(value, dict) else ", but should be a section with settings"


def _compute_environment(value: Any, content: Content) -> str | None:
    is_local = value in (None, "LOCAL_MACHINE")
    return None if is_local else ", and this trainer is launched on its own machines; use LOCAL_MACHINE"


_OF_TPUS = "downcast_bf16 tpu_name tpu_zone tpu_use_cluster tpu_use_sudo command_file commands tpu_vm tpu_env"
_ELSEWHERE = "this trainer shards a model with FSDP, version 2"


def _of_fsdp(value: Any, content: Content) -> str | None:
    """A section that is read where `distributed_type` says FSDP, and says nothing elsewhere; fsdp_keys.py has its keys."""
    if content.get("distributed_type") == "FSDP":
        return _section(value, content)
    return _off("distributed_type is not FSDP, so nobody reads it")(value, content)


COMPILER_KEYS: dict[str, Check] = {
    **{"backend": _one_of(COMPILERS), "mode": _one_of(COMPILER_MODES)},
    **dict.fromkeys(("use_fullgraph", "use_dynamic", "use_regional_compilation"), _truth),
}

KEYS: dict[str, Key] = {
    "compute_environment": Key(_compute_environment),
    "distributed_type": Key(_distributed_type),
    "mixed_precision": Key(_mixed_precision),
    "use_cpu": Key(_truth),
    "debug": Key(_truth),
    "num_processes": Key(_whole(1), "number"),
    "machine_rank": Key(_machine_rank, "number"),
    "num_machines": Key(_num_machines, "number"),
    "gpu_ids": Key(_gpu_ids, "text"),
    "main_process_ip": Key(_main_process_ip, "text"),
    "main_process_port": Key(_main_process_port, "number"),
    "rdzv_backend": Key(_rdzv_backend),
    "same_network": Key(_truth),
    "main_training_function": Key(_off("the launcher starts this trainer's own", "main")),
    "enable_cpu_affinity": Key(_affinity),
    "fp8_config": Key(_section),
    **dict.fromkeys(("fsdp_config", "parallelism_config"), Key(_of_fsdp)),
    **dict.fromkeys(OTHER_SHARDING.values(), Key(_off(_ELSEWHERE))),
    "mpirun_config": Key(_off("processes on CPUs are started by torch's launcher and not by mpirun")),
    **dict.fromkeys(_OF_TPUS.split(), Key(_off("this trainer does not run on TPUs"))),
    "dynamo_config": Key(_section),
    # Two forms of older versions of Accelerate, which it still reads.
    "dynamo_backend": Key(_one_of(COMPILERS)),
    "fp16": Key(_fp16),
}
"""The keys of Accelerate's ClusterConfig."""
