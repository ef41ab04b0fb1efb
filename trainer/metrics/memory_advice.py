"""What to do where memory does not hold a run; for whoever finds out, the launcher of a killed process included. Imports no torch."""


def advice(micro_batch: int, mode: str) -> str:
    """What to do about it, a sentence or two."""
    return f"{_smaller(micro_batch)} {_IN_MODE[mode]}" if mode in _IN_MODE else _smaller(micro_batch)


_IN_MODE = {
    "no": "A cluster file that says bf16 halves what is kept for the backward pass.",
    "fp8": "fp8 keeps copies of the weights beside them: precision.cache_weights=false frees them between micro-batches, a cluster file "
    "that says bf16 has none.",
}
"""What else takes memory in a precision, and how to save it."""


def _smaller(micro_batch: int) -> str:
    checkpointing = "model.gradient_checkpointing=true (a third more time)"
    if micro_batch == 1:
        return f"micro_batch is 1 already: set {checkpointing}, a shorter sequence_length, or a smaller model."
    smaller = micro_batch // 2 if micro_batch % 2 == 0 else 1
    return (
        f"Set micro_batch={smaller} instead of {micro_batch}: the same global_batch is then taken in more pieces, and what is learned is the "
        f"same; or set {checkpointing}."
    )
