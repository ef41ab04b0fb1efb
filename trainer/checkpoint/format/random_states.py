"""The random streams of one rank, as plain JSON: Python's, NumPy's, torch's on the CPU and on this rank's device.

Accelerate stores the same streams in a pickle and only logs a failure to restore them; these are restored exactly or the
start fails.
"""

import base64
import io
import random
from typing import Any

import numpy as np
import torch

from trainer.errors import CheckpointError


def capture(device: torch.device) -> dict[str, Any]:
    """The state of every stream now."""
    version, words, gaussian = random.getstate()
    name, keys, position, has_gaussian, cached = np.random.get_state()
    return {
        "python": [version, list(words), gaussian],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gaussian), float(cached)],
        "torch": _to_text(torch.get_rng_state()),
        "cuda": _to_text(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
    }


def accelerate_file(step: int) -> bytes:
    """This rank's `random_states_R.pkl`, with the entries that `Accelerator.load_state` reads.

    step    Accelerate's own count of micro-batches
    source  accelerate 1.15, checkpointing.py, save_accelerator_state
    """
    states: dict[str, Any] = {
        "step": step,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    return to_bytes(states)


def to_bytes(value: Any) -> bytes:
    """What torch.save writes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Puts every stream back and checks that it took. raises CheckpointError: anything else would be a silent loss of exactness"""
    version, words, gaussian = states["python"]
    random.setstate((version, tuple(words), gaussian))
    name, keys, position, has_gaussian, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gaussian, cached))
    torch.set_rng_state(_to_tensor(states["torch"]))
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(_to_tensor(states["cuda"]), device)
    now = capture(device)
    differing = [stream for stream in states if states[stream] is not None and now[stream] != states[stream]]
    if differing:
        raise CheckpointError(
            f"the random streams {', '.join(differing)} did not come back as the checkpoint has them, so that this run would not go on as it was; "
            "resume with the versions of torch, numpy and Python that wrote it, or from another checkpoint: resume_from_checkpoint=STEP"
        )


def seed_anew(seed: int, step: int, rank: int) -> None:
    """Starts this rank's streams as a function of (seed, step, rank): for a world size the checkpoint was not made with."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, dtype=np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _to_text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _to_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
