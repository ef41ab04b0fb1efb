"""What was asked, what is possible, what was decided and why. The cluster file's `mixed_precision` asks.

Everything that Accelerate would change without a word is decided here instead and told: fp16 on a CPU (it would compute in fp32), bf16
on a GPU that only emulates it, and fp8 where GPU, CUDA, TransformerEngine or shapes do not give it (Accelerate would take fp16 and call
it fp8). A decision is plain data from plain facts (`probe.probe_device` gathers them); all ranks take the same, since `agree` makes one of theirs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer import files
from trainer.config.cluster_keys import MODES
from trainer.config.folders import command_line
from trainer.config.schema import PrecisionConfig
from trainer.errors import PrecisionError
from trainer.precision.recipes import RECIPES, Recipe, check_options, format_of, recipe_of


def setup_command() -> str:
    """What installs TransformerEngine."""
    return command_line("--setup", "fp8") if files.checkout_folder() else command_line("install-fp8")


SLOW = 0.8
"""A precision whose products have less than this of fp32's speed is warned of."""

DEFAULTS = PrecisionConfig()
"""The precision block of a recipe that does not speak of it."""

NO_DEVICE = "there is no CUDA device, and fp8 is arithmetic of a GPU"


@dataclass(frozen=True)
class Facts:
    """What is known of this process's device and of TransformerEngine, gathered in this order until something is missing."""

    device_type: str
    has_bf16: bool
    gpu: str = ""
    """The device's name."""
    gpu_index: int = 0
    capability: tuple[int, int] | None = None
    cuda: tuple[int, int] | None = None
    """The CUDA that torch was built with."""
    backend: str | None = None
    """TransformerEngine and its version, or the words of a stand-in."""
    emulated: bool = False
    """Whether the backend only emulates fp8: the tests' stand-in, never a gain."""
    problem: str | None = None
    """Why the backend cannot do it: the words of the import, of TransformerEngine's own check, or of the probe."""
    probe_error: float | None = None
    """Relative error of one small layer's output and gradients against fp32."""

    @property
    def device(self) -> str:
        """The GPU, in words."""
        number = ".".join(map(str, self.capability or ()))
        return f"GPU {self.gpu_index} is {self.gpu} (compute capability {number})"


@dataclass(frozen=True)
class Decision:
    """The precision a run computes in."""

    asked: str
    mode: str
    """What Accelerate is given: one of MODES."""
    reason: str
    recipe: str | None = None
    """fp8's recipe by name, where fp8 was asked for."""
    title: str = ""
    format: str | None = None
    backend: str | None = None
    emulated: bool = False
    speed: float | None = None
    """How many times as fast as in fp32 one small product is on this device; None where it was not timed."""

    @property
    def fp8_recipe(self) -> Recipe:
        """The recipe of a decision that names one."""
        assert self.recipe is not None, "fp8 was asked for"
        return RECIPES[self.recipe]

    @property
    def is_slow(self) -> bool:
        """Whether fp32 would be faster."""
        return self.speed is not None and self.speed < SLOW

    @property
    def speed_words(self) -> str:
        """The speed, as a clause; nothing where it was not timed."""
        if self.speed is None:
            return ""
        if self.is_slow:
            share = f"1/{1 / self.speed:.0f}" if self.speed < 0.4 else f"{self.speed:.0%}"
            return f"at {share} of fp32's speed here: this device has no {self.mode} arithmetic of its own"
        return f"{self.speed:.1f} times fp32's speed in a small product"

    @property
    def slow_warning(self) -> str | None:
        """One line for a launch in a precision that is slower than fp32; None for another. Not a part of the sentence, which is stored."""
        words = f"{self.mode} is slow here: {self.speed_words}; mixed_precision: no (fp32) would be faster"
        return words if self.is_slow else None

    @property
    def label(self) -> str:
        """What a record calls it: the mode, and never plain `fp8` for an emulation."""
        return "fp8 emulation" if self.emulated and self.mode == "fp8" else self.mode

    @property
    def sentence(self) -> str:
        """One line for people."""
        mode = "fp32 (mixed_precision: no)" if self.mode == "no" else self.label
        asked = f"{self.asked} ({self.title})" if self.title else self.asked
        if self.mode == self.asked:
            return f"precision: {mode}, {self.reason}"
        nothing = "; nothing runs in fp8" if self.asked == "fp8" else ""
        return f"precision: {mode} instead of {asked}, because {self.reason}{nothing}"

    def as_json(self) -> dict[str, Any]:
        """The decision as plain values, with its sentence."""
        return {**asdict(self), "label": self.label, "sentence": self.sentence}


def decide(asked: str, facts: Facts, wanted: PrecisionConfig = DEFAULTS, misfit: str | None = None) -> Decision:
    """The precision to compute in; `asked` is one of MODES.

    wanted   the recipe's precision block, read where fp8 is asked for
    misfit   why the shapes of model and batch leave nothing for fp8
    raises   PrecisionError for a format or an option that the recipe does not have
    """
    if asked not in MODES:
        raise PrecisionError(
            f"this process is asked to compute in {asked!r} (by TRAINER_ASKED_PRECISION or ACCELERATE_MIXED_PRECISION of its environment); take one "
            f"of {', '.join(MODES)}"
        )
    if asked == "fp8":
        return _decide_fp8(facts, wanted, misfit)
    if asked == "fp16" and facts.device_type == "cpu":
        reason = "a CPU has no fp16 arithmetic and Accelerate would compute in fp32 under that name"
        return Decision(asked, "no", reason)
    if asked == "bf16" and not facts.has_bf16:
        return Decision(asked, "no", "this GPU has no bf16 arithmetic of its own (compute capability 8.0 brings it)")
    return Decision(asked, asked, "as the cluster file asks")


def _decide_fp8(facts: Facts, wanted: PrecisionConfig, misfit: str | None) -> Decision:
    recipe = recipe_of(wanted.recipe, facts.capability)
    form = format_of(recipe, wanted.format)
    check_options(recipe, wanted.options)
    named: dict[str, Any] = {"recipe": recipe.name, "title": f"{recipe.title}, {form}", "format": form}
    reason = lacking(recipe, facts) or facts.problem or misfit
    if reason:
        below = decide("bf16", facts)
        return Decision("fp8", below.mode, reason if below.mode == "bf16" else f"{reason}; and {below.reason}", **named)
    assert facts.backend is not None and facts.probe_error is not None, "the facts were looked at to the end"
    where = "" if facts.emulated else f"; {facts.device}"
    emulation = "; this is NOT fp8, nothing is faster" if facts.emulated else ""
    reason = f"{recipe.title}, {form}, by {facts.backend}{where}; a small layer came within {facts.probe_error:.1%} of fp32{emulation}"
    return Decision("fp8", "fp8", reason, **named, backend=facts.backend, emulated=facts.emulated)


def lacking(recipe: Recipe, facts: Facts) -> str | None:
    """What the device lacks for this recipe, as a clause; None when nothing."""
    if facts.emulated:
        return None
    if facts.device_type != "cuda" or facts.capability is None:
        return NO_DEVICE
    if facts.capability < recipe.capability:
        return f"{facts.device}, and {_named(recipe)} needs {_number(recipe.capability)}"
    if recipe.ends and facts.capability >= recipe.ends:
        return f"{facts.device}, and {_named(recipe)} is for GPUs below {_number(recipe.ends)}; take precision.recipe=current"
    if recipe.cuda and (facts.cuda or (0, 0)) < recipe.cuda:
        found = f"CUDA {_number(facts.cuda)}" if facts.cuda else "no CUDA"
        return f"torch was built with {found}, and {_named(recipe)} needs CUDA {_number(recipe.cuda)}"
    return None


def _named(recipe: Recipe) -> str:
    return f"fp8 with precision.recipe {recipe.name!r}"


def _number(pair: tuple[int, int]) -> str:
    return ".".join(map(str, pair))


def agree(decisions: Sequence[Decision]) -> Decision:
    """One decision out of those of all ranks, in the order of the ranks: the lowest mode that one of them has to take, with that rank's reason.

    Where `auto` chose differently on GPUs of two kinds, it is current scaling, which both have.
    """
    order = [(MODES.index(decision.mode), decision.recipe == "mxfp8") for decision in decisions]
    rank = order.index(min(order))
    chosen = decisions[rank]
    if len({decision.mode for decision in decisions}) == 1:
        return chosen
    return replace(chosen, reason=f"on rank {rank} {chosen.reason}")


def check_required(decision: Decision, wanted: PrecisionConfig) -> None:
    """Refuses the fallback where the recipe says precision.required."""
    if wanted.required and decision.asked == "fp8" and decision.mode != "fp8":
        raise PrecisionError(
            f"precision.required is true and fp8 ({decision.title}) cannot be had: {decision.reason}; fix that, set precision.required=false to "
            "train in bf16 instead, or take a cluster file that says bf16"
        )


def idle_settings(asked: str, wanted: PrecisionConfig) -> str | None:
    """One line on what was set in the precision block and means nothing under what the cluster file asks for; None when nothing."""
    changed = [name for name in type(wanted).model_fields if getattr(wanted, name) != getattr(DEFAULTS, name)]
    idle = [f"precision.{name}" for name in changed if name != "tf32" and asked != "fp8"]
    why = f"without effect, since the cluster file asks for {asked}"
    told = [f"{', '.join(idle)}: {why} and not for fp8"] if idle else []
    if "tf32" in changed and asked not in IN_FP32:
        told.append(f"precision.tf32: {why}, which computes nothing large in fp32")
    return "; ".join(told) or None


IN_FP32 = ("no",)
"""Modes with large matrix products in fp32."""


def tf32_sentence(mode: str, device_type: str, allowed: bool) -> str | None:
    """What fp32 means on a GPU, in one line; None where nothing large is computed in it."""
    if device_type != "cuda" or mode not in IN_FP32:
        return None
    if allowed:
        return "matrix products in fp32 take TF32 (precision.tf32), 10 bits of mantissa instead of 23"
    return "matrix products in fp32 are fp32's; precision.tf32=true allows TF32, several times as fast with 10 bits of mantissa instead of 23"
