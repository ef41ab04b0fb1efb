"""Equal bits from equal inputs: what torch is asked for it, what that costs, and what is said where it cannot be had.

A CPU computes the same either way. On a GPU `deterministic: true` has torch take the deterministic form of every operation, and raise
where there is none. Asked only to warn (`warn_only=True`) torch would keep the attention backward that adds up in any order, so no replay
of a run with sequences of several tiles would be exact.
"""

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.errors import ConfigError

ROUNDS = 8
"""So often attention is timed each way; the medians are told."""

SWITCH_OFF = (
    "set deterministic=false, which gives up that replayed steps after a resume are equal to the last bit, or take another model.config (GPT-2 "
    "and Llama have no such operation)"
)
"""What a run can do where an operation has no deterministic form."""

_NO_FORM = re.compile(r"(\S+) does not have a deterministic implementation")
_NO_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def make_deterministic() -> None:
    """The same bits from the same inputs; what a GPU needs for it must be set before its first use."""
    os.environ.setdefault(_NO_WORKSPACE, ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")  # TransformerEngine's own switch
    torch.use_deterministic_algorithms(True)
    # A check for programmers that costs a pass over every buffer.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


@contextmanager
def any_order() -> Iterator[None]:
    """For an operation that writes each element once, so that its result is the same in whatever order it writes.

    Its deterministic form, which torch takes because indices might repeat (a sort and some twenty kernels for a scatter), would be slower
    and no more exact.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


@contextmanager
def missing_form_explained(remedy: str) -> Iterator[None]:
    """torch's refusal of an operation that has no deterministic form becomes a ConfigError that names the operation and what to do.

    remedy   a clause
    """
    try:
        yield
    except RuntimeError as error:
        if problem := _problem(str(error), remedy):
            raise ConfigError(problem) from error
        raise


def _problem(said: str, remedy: str) -> str | None:
    if found := _NO_FORM.search(said):
        return f"deterministic is true, and {found[1]}, an operation of this model, has no deterministic form in torch {torch.__version__}; {remedy}"
    if _NO_WORKSPACE in said:
        value = os.environ.get(_NO_WORKSPACE)
        return (
            f"deterministic is true, and {_NO_WORKSPACE}={value} in the environment lets cuBLAS take workspaces in which its results differ from run to "
            f"run; unset it (:4096:8 is set then), or {remedy}"
        )
    return None


def report(
    deterministic: bool,
    device: torch.device,
    dtype: torch.dtype,
    model: Any,
    micro_batch: int,
    sequence_length: int,
    one_pass: Callable[[], None],
) -> str:
    """What `deterministic` gives and costs here, in one line.

    On a GPU attention is timed forward and backward at the run's shape both ways, beside a whole pass over a micro-batch as it is.

    dtype      of queries, keys and values
    model      the config of a transformers model
    one_pass   forward and backward over one micro-batch; called on a GPU with `deterministic` alone
    """
    if not deterministic:
        return (
            "deterministic: off; a GPU takes its fastest kernels (cuDNN attention, NVLS), and given up is that steps replayed after a resume equal "
            "the lost ones to the last bit"
        )
    if device.type != "cuda":
        return "deterministic: on; a CPU computes the same either way, it costs nothing"
    num_heads = getattr(model, "num_attention_heads", 1)
    shape = (micro_batch, num_heads, sequence_length, model.hidden_size // num_heads)
    on, off = attention_seconds(shape, dtype, device)
    one_pass()  # the first after other work may still compile
    whole = statistics.median(_seconds(one_pass) for _ in range(3))
    return cost(on, off, num_layers=getattr(model, "num_hidden_layers", 1), pass_seconds=whole)


def cost(on: float, off: float, *, num_layers: int, pass_seconds: float) -> str:
    """What deterministic attention costs, in words; `on` and `off` are seconds a layer, `pass_seconds` those of a micro-batch with it on."""
    share = max(0.0, num_layers * (on - off) / pass_seconds)
    return (
        f"deterministic: on; attention takes {1e3 * on:.3g} ms a layer with it and {1e3 * off:.3g} ms without ({on / off:.2f}x), which is "
        f"{100 * share:.1f} % of a step at most; cuBLAS keeps one workspace, NCCL one algorithm"
    )


def attention_seconds(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Seconds of causal attention forward and backward over [B, H, T, D], with determinism and without; medians, taken in turn."""
    query = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    upstream = torch.randn(shape, device=device, dtype=dtype)

    def attend() -> None:
        query.grad = None
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).backward(upstream)

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        seconds[True].append(_seconds(attend))
        with any_order():
            seconds[False].append(_seconds(attend))
    return statistics.median(seconds[True]), statistics.median(seconds[False])


def _seconds(work: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started
