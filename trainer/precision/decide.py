"""What was asked, what is possible, what was decided and why. The cluster file's `mixed_precision` asks.

Everything that Accelerate would change without a word is decided here instead and told: fp16 on a CPU (it would compute in fp32), bf16
on a GPU that only emulates it, and fp8, whose layers this version does not convert: Accelerate's own conversion unties the embeddings and
leaves the head out of the optimizer.
"""

from dataclasses import dataclass

from trainer.config.cluster import MODES

FP8_REASON = (
    "fp8 layers of TransformerEngine are not part of this version, and Accelerate's own conversion would untie the embeddings "
    "and leave the head untrained"
)


@dataclass(frozen=True)
class Decision:
    """The precision a run computes in."""

    asked: str
    mode: str
    reason: str

    @property
    def sentence(self) -> str:
        """One line for people."""
        mode = "fp32 (mixed_precision: no)" if self.mode == "no" else self.mode
        if self.mode == self.asked:
            return f"precision: {mode}, {self.reason}"
        return f"precision: {mode} instead of {self.asked}, because {self.reason}"


def decide(asked: str, *, device_type: str, has_bf16: bool) -> Decision:
    """The precision to compute in on this kind of device; `asked` is one of MODES."""
    assert asked in MODES, asked
    if asked == "fp8":
        below = decide("bf16", device_type=device_type, has_bf16=has_bf16)
        return Decision(asked, below.mode, FP8_REASON if below.mode == "bf16" else f"{FP8_REASON}; and {below.reason}")
    if asked == "fp16" and device_type == "cpu":
        return Decision(
            asked, "no", "a CPU has no fp16 arithmetic and Accelerate would compute in fp32 under that name"
        )
    if asked == "bf16" and device_type == "cuda" and not has_bf16:
        return Decision(asked, "no", "this GPU has no bf16 arithmetic of its own (compute capability 8.0 brings it)")
    return Decision(asked, asked, "as the cluster file asks")
