"""Accelerate keeps its state in the process: tests that make an Accelerator of their own forget the one before, and their own."""

from accelerate.state import AcceleratorState, GradientState


def forget_accelerator() -> None:
    """The next Accelerator is as the first of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
