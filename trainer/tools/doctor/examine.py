"""The process that tries things out: `python -m trainer.tools.doctor.examine PIPE`, with a request in JSON on its standard input.

It answers each question with a line of JSON in the pipe as soon as it knows, so that what it knew is not lost when it dies: a broken
installation may take a process down in ways that no `except` sees. After a failure on a GPU it ends, since CUDA may be of no use in it
any more; whoever asked starts another for what is left.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trainer.config.cluster import read_cluster
from trainer.config.cluster_keys import MODES
from trainer.config.load import load
from trainer.errors import ConfigError, PrecisionError, TrainerError
from trainer.precision.recipes import RECIPES
from trainer.safety.parent import end_with_parent
from trainer.text import one_line

TORCH, BACKEND, LAUNCH = "torch", "backend", "launch"
ROWS = (*(mode for mode in MODES if mode != "fp8"), *(f"fp8 {name}" for name in RECIPES))
"""What may be asked for, by the mode and fp8's recipe."""

Answer = dict[str, Any]


def find_out(question: str, asked: Answer | None) -> Answer:
    """The answer to one question: facts, or a `problem` in words, or the words of a `mistake` in what was typed.

    asked   cluster file, recipe and overrides of a launch
    """
    try:
        if question == TORCH:
            return _torch()
        if question == BACKEND:
            return _backend()
        return _launch(**(asked or {})) if question == LAUNCH else _row(*question.split())
    except (ConfigError, PrecisionError) as error:
        return {"mistake": str(error)}
    except TrainerError as error:
        return {"problem": str(error)}
    except Exception as error:  # whatever is broken here is what was to be found out
        return {"problem": one_line(error)}


def _torch() -> Answer:
    import torch

    facts = {"version": torch.__version__, "cuda": torch.version.cuda, "num_gpus": 0}
    if torch.cuda.is_available():
        return {**facts, "num_gpus": torch.cuda.device_count()}
    if not torch.version.cuda:
        return facts
    try:
        torch.cuda.init()  # says why
    except Exception as error:
        return {**facts, "problem": one_line(error)}
    return facts


def _backend() -> Answer:
    from trainer.precision import backend

    try:
        return {"name": backend.load().name}
    except ImportError as error:
        if backend.is_missing(error):
            return {"name": None}
        raise


def _row(asked: str, recipe: str | None = None) -> Answer:
    """One precision by the decision that a run would take, for a model and a batch that fit."""
    import torch

    from trainer.config.schema import PrecisionConfig
    from trainer.precision.decide import decide
    from trainer.precision.probe import probe_device
    from trainer.precision.timing import timed

    wanted = PrecisionConfig.model_validate({"recipe": recipe}) if recipe else None
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    facts = probe_device(device_type, wanted)
    decision = decide(asked, facts, wanted or PrecisionConfig())
    return {"decision": asdict(timed(decision, device_type)), "probe_error": facts.probe_error}


def _launch(cluster: str, recipe: str, overrides: Sequence[str]) -> Answer:
    """What the ranks of a launch on this machine would agree on, by the functions that they call."""
    import torch

    from trainer.config.folders import run_folder
    from trainer.data.corpus import count_sequences
    from trainer.launch.compile_choice import left_uncompiled
    from trainer.launch.environment import LaunchEnv
    from trainer.launch.process_group import init_process_group
    from trainer.precision.decide import Decision, agree
    from trainer.precision.measured import find
    from trainer.precision.negotiate import propose, uncompiled
    from trainer.run.identity import speed_conditions
    from trainer.run.prepared import blocks_of

    config, file = load(recipe, overrides, count_sequences).config, read_cluster(cluster)
    place = LaunchEnv.from_env()
    device = init_process_group(place, deterministic=config.deterministic)
    measured = None
    if place.precision == "fp8":
        measured = find(run_folder(config).parent, speed_conditions(config, file.num_processes, device))

    def proposed(rank: int) -> Decision:
        if device.type == "cuda":
            torch.cuda.set_device(rank)
        return propose(place.precision, config, device.type, lambda: blocks_of(config), measured)

    agreed = agree([proposed(rank) for rank in range(file.num_local_processes if device.type == "cuda" else 1)])
    left = left_uncompiled(file.compiler, uncompiled(agreed), place.use_cpu)
    return {"decision": asdict(agreed), "left_uncompiled": left}


def _may_be_poisoned(answer: Answer) -> bool:
    """Whether CUDA may have failed in this process."""
    torch = sys.modules.get("torch")
    is_fp8 = answer.get("decision", {}).get("asked") == "fp8"
    failed = "problem" in answer or (is_fp8 and answer.get("probe_error") is None)
    return failed and torch is not None and torch.cuda.is_initialized()


def main(pipe: int) -> None:
    """Answers the questions on standard input, in their order, until one went so that the next had better be asked of another process."""
    end_with_parent()
    request = json.load(sys.stdin)
    with os.fdopen(pipe, "w", encoding="utf-8") as out:
        for question in request["questions"]:
            answer = find_out(question, request["asked"])
            out.write(json.dumps([question, answer]) + "\n")
            out.flush()
            if _may_be_poisoned(answer):
                return


if __name__ == "__main__":
    main(int(sys.argv[1]))
