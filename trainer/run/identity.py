"""The facts by which a run, a replay and a launch are known again."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from accelerate import Accelerator

import trainer
from trainer.checkpoint.format.manifest import UNSPECIFIC, Description, Manifest
from trainer.config.folders import run_folder
from trainer.config.load import dump, flatten
from trainer.config.optimizers import optimizer_conditions
from trainer.config.schema import Config
from trainer.data.corpus import Corpus
from trainer.journal import branch_of
from trainer.launch.compile_choice import compile_backend
from trainer.model.presets import preset_fields
from trainer.optim.rules import frozen_names
from trainer.plugins import digest_of_code, is_plugin, plugin_versions
from trainer.precision.decide import IN_FP32, Decision


class Precision(Protocol):
    """What a description says of the precision: a PrecisionRecord, or what a launch is expected to have."""

    @property
    def label(self) -> str: ...

    def facts(self) -> dict[str, Any]: ...


def describe(
    config: Config,
    corpus: Corpus,
    model: torch.nn.Module,
    precision: Callable[[], Precision],
    computed_on: Mapping[str, Any] | None = None,
) -> Description:
    """The facts that a manifest states; `identity` are those that a resume must find again, `computed_on` those of `computing_conditions`, where known.

    precision   gives what it is at the moment
    """
    held_out = (corpus.validation.fingerprint, config.evaluation.num_sequences) if corpus.validation else None
    return Description(
        identity={
            "parameter_shapes": digest(sorted((name, list(p.shape)) for name, p in model.named_parameters())),
            "vocab_size": model.real_vocab_size,
            "tokenizer": corpus.tokenizer.sha256 if corpus.tokenizer else None,
            "training_data": corpus.train.fingerprint,
            "sequence_length": config.sequence_length,
            "seed": config.seed,
            "optimizer": config.optimizer.name,
            **({"initial_weights": model.initial.get("digest")} if model.initial else {}),
        },
        model=json.loads(model.config.to_json_string(use_diff=False)),
        tokenizer=corpus.tokenizer.source if corpus.tokenizer else None,
        vocab_size=model.real_vocab_size,
        initial=model.initial,
        branch_of=branch_words(run_folder(config)),
        precision=precision().label,
        precision_facts=lambda: precision().facts(),
        versions=versions(config.plugins),
        config_text=dump(config),
        validation=digest(held_out) if held_out else None,
        settings=flatten(config),
        conditions=computed_on or {},
        allowed_changes=config.resume.allow_changes,
        frozen=frozen_names(model, config.optimizer.groups),
        training_data_at=corpus.train.fingerprint_at,
    )


def branch_words(folder: Path) -> str | None:
    """What a run is a branch of: the run and its step; None where it is none."""
    found = branch_of(folder)
    return f"{found[0]} at step {found[1]}" if found else None


PACKAGES = ("torch", "accelerate", "transformers")
"""Those that may change the bits of a step."""


def versions(plugins: Sequence[str] = ()) -> dict[str, str]:
    """What a result may depend on, by name; `plugins` as the setting names them."""
    return {
        "trainer": trainer.__version__,
        "trainer_code": code_digest(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **plugin_versions(plugins),
    }


NUMERIC = ("max_steps", "global_batch", "micro_batch", "deterministic", "model.gradient_checkpointing")
"""Settings that decide about the bits of a step, besides the sections in which all do."""

_SPEED = """
micro_batch global_batch sequence_length deterministic model.gradient_checkpointing optimizer.name data.corpus data.tokenizer data.vocab_size
precision.format precision.options precision.bf16_first_blocks precision.bf16_last_blocks precision.cache_weights
"""
DECIDE_ABOUT_SPEED = tuple(_SPEED.split())
"""Settings that decide how fast a step is."""


def replay_facts(
    config: Config,
    accelerator: Accelerator,
    decision: Decision,
    description: Description,
    head: object | None = None,
    routers: object | None = None,
) -> dict[str, Any]:
    """Everything that must be equal for a replay to be bit-identical, by name, as plain values; what does not apply is None.

    head, routers  their ways, whose words are facts: find_head_way finds the one, `model.routing` is the other

    A new fact that was something else in the launches before it was recorded belongs into replay.UNRECORDED besides.
    """
    facts = {
        **_facts_of_the_model(description.identity, description.model),
        **_facts_of_the_settings(flatten(config)),
        "processes": accelerator.num_processes,
        "precision": decision.mode,
        **computing_conditions(accelerator, decision, optimizer=config.optimizer.name, head=head),
        "routers": None if routers is None else str(routers),
        **{package: version(package) for package in PACKAGES},
        **plugin_versions(config.plugins),
    }
    return _plain(facts)


def computing_conditions(
    accelerator: Accelerator, decision: Decision, *, optimizer: str, head: object | None = None
) -> dict[str, Any]:
    """What a run computes on and how, beside its precision, by name, as plain values; what does not apply is None.

    head  the way of the head as find_head_way finds it, whose words are the fact
    """
    device = accelerator.device
    # These variables choose among the kernels of fp8.
    kernels = {name: value for name, value in sorted(os.environ.items()) if name.startswith("NVTE_")}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        **optimizer_conditions(optimizer, device.type),
        "compiled": compile_backend(accelerator),
        "sharded": accelerator.is_fsdp2 or None,
        "head": None if head is None else str(head),
        "fp8_recipe": decision.recipe,
        "fp8_backend": decision.backend,
        "tf32": (device.type == "cuda" and decision.mode in IN_FP32 and torch.backends.cuda.matmul.allow_tf32) or None,
        **(kernels if decision.mode == "fp8" else {}),
    }


def _processor() -> str:
    """The instructions that torch's own code takes here, and the threads that share a sum: both decide about the order of summation."""
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def facts_of_checkpoint(manifest: Manifest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts, as far as a checkpoint tells them: for steps of a launch that wrote down the digest alone.

    settings  of the checkpoint's config.yaml, by dotted name
    """
    facts = {
        **_facts_of_the_model(manifest.identity, manifest.model),
        **_facts_of_the_settings(settings),
        "processes": manifest.world_size,
        "precision": manifest.precision.partition(" ")[0],
        **manifest.conditions,
        **{name: number for name, number in manifest.versions.items() if name in PACKAGES or is_plugin(name)},
    }
    return _plain(facts)


def _facts_of_the_model(identity: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    specific = {f"model.{field}": value for field, value in model.items() if field not in UNSPECIFIC}
    return {name: value for name, value in identity.items() if name != "optimizer"} | specific


def _facts_of_the_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    sections = ("optimizer.", "schedule.", "precision.")
    numeric = [key for key in settings if key in NUMERIC or (key.startswith(sections) and key != "precision.tf32")]
    # No optimizer.groups are what a version without them had.
    return {key: None if settings[key] == [] else settings[key] for key in numeric}


def replay_key(facts: Mapping[str, Any]) -> str:
    """Stands for the facts of `replay_facts`, without those that do not apply; 16 hexadecimal digits."""
    return digest({name: value for name, value in facts.items() if value is not None})[:16]


def speed_conditions(config: Config, num_processes: int, device: torch.device) -> dict[str, Any]:
    """What decides how fast a run is, and how much faster in fp8 than in bf16, as plain values; equal for runs of which one was measured."""
    settings = flatten(config)
    frozen = [group.match for group in config.optimizer.groups if group.freeze]
    try:
        engine = version("transformer_engine")
    except PackageNotFoundError:
        engine = None
    facts = {
        "model": {**(preset_fields(config.model.preset) if config.model.preset else {}), **config.model.config},
        **{name: settings[name] for name in DECIDE_ABOUT_SPEED},
        **({"model.init_from": config.model.init_from} if config.model.init_from else {}),
        "processes": num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformer_engine": engine,
        **({"frozen": frozen} if frozen else {}),
        **plugin_versions(config.plugins),
    }
    return _plain(facts)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON gives them back, so that those of another launch compare equal."""
    return json.loads(json.dumps(facts, default=str))


def fingerprint(config: Config, num_processes: int) -> str:
    """Stands for this code, the settings and the packages: deaths under another one say nothing about a checkpoint."""
    packages = (torch.__version__, version("accelerate"), plugin_versions(config.plugins))
    return digest((code_digest(), dump(config), num_processes, *packages))[:16]


def code_digest() -> str:
    """Stands for this trainer's code, whose version number changes more rarely; 8 hexadecimal digits."""
    return digest_of_code(Path(trainer.__file__).resolve().parent.rglob("*.py"))


def digest(value: Any) -> str:
    """Stands for a value: 32 hexadecimal digits of its JSON."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())
