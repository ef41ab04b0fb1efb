"""Machines as the doctor's processes would describe them: each a driver's view, and the answers to its questions."""

from dataclasses import asdict

from trainer.config.schema import PrecisionConfig
from trainer.precision.decide import Facts, decide, setup_command
from trainer.tools.doctor.diagnosis import Diagnosis, diagnose
from trainer.tools.doctor.examine import BACKEND, ROWS, TORCH
from trainer.tools.doctor.machine import Gpu, Machine

TE = "TransformerEngine 2.20.2"
CPU, H100, A100 = (
    Facts("cpu", True),
    Facts("cuda", True, gpu="NVIDIA H100", capability=(9, 0)),
    Facts("cuda", True, gpu="NVIDIA A100", capability=(8, 0)),
)


def machine(*gpus: Facts, driver="580.95.05", problem=None, num_visible=None) -> Machine:
    """A machine with these GPUs."""
    found = tuple(Gpu(gpu.gpu, 85_520_809_984, gpu.capability) for gpu in gpus)
    return Machine(
        "3.12.3", 16, driver if gpus else None, problem, found, len(gpus) if num_visible is None else num_visible
    )


def answers(facts: Facts, *, backend=TE, num_gpus=0, **torch) -> dict:
    """What is found out on such a device; `backend` None: TransformerEngine is not installed."""
    missing = None if backend else f"TransformerEngine is not installed ({setup_command()} installs it)"
    known = Facts(
        **{
            **vars(facts),
            "cuda": (13, 0),
            "backend": backend,
            "problem": missing,
            "probe_error": 0.041 if backend else None,
        }
    )
    found = {TORCH: {"version": "2.11.0", "cuda": "13.0", "num_gpus": num_gpus, **torch}, BACKEND: {"name": backend}}
    for row in ROWS:
        asked, _, recipe = row.partition(" ")
        decision = decide(asked, known, PrecisionConfig(recipe=recipe) if recipe else PrecisionConfig())
        found[row] = {
            "decision": asdict(decision),
            "probe_error": known.probe_error if decision.mode == "fp8" else None,
        }
    return found


def diagnosis(monkeypatch, there: Machine, found: dict) -> Diagnosis:
    """The diagnosis of such a machine."""
    monkeypatch.setattr("trainer.tools.doctor.diagnosis.read_machine", lambda: there)
    monkeypatch.setattr("trainer.config.cluster.count_gpus", lambda: there.num_visible)
    monkeypatch.setattr(
        "trainer.tools.doctor.diagnosis.ask",
        lambda questions, asked, environment: {each: found[each] for each in questions},
    )
    return diagnose()
