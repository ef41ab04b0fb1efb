"""Families that torch.compile cannot serve: their blocks walk over the tokens one by one in Python."""

from importlib.util import find_spec

_SCANS = frozenset({"mamba", "falcon_mamba", "jamba", "zamba"})
"""With a fused kernel in the package mamba_ssm, on a GPU."""

_LOOPS = frozenset({"rwkv", "xlstm"})


def uncompiled_because(model_type: str | None, *, use_cpu: bool) -> str | None:
    """Why blocks of this type are not compiled here; None when they are.

    The compiler would unroll the walk: four blocks of Mamba over 256 tokens took it three minutes on two cores, and longer
    sequences take it proportionally longer.
    """
    has_kernel = model_type in _SCANS and not use_cpu and find_spec("mamba_ssm") is not None
    if model_type not in _SCANS | _LOOPS or has_kernel:
        return None
    kernel = "; install mamba_ssm, whose kernel does not" if model_type in _SCANS and not use_cpu else ""
    return f"a {model_type} block walks over the tokens one by one, which the compiler would unroll{kernel}"
