"""What is measured, what is not and why, and the settings of the launches. Pure: what the machine can do is handed in."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.schema import Config
from trainer.precision.decide import Decision
from trainer.precision.recipes import RECIPES, uncompiled_because

OUT_OF_REACH = 1_000_000
"""No launch comes so far: it is ended once it has taken the steps that are measured, and so never evaluates, saves or exports."""


_NOTHING_ELSE = """
    max_tokens= max_epochs= resume_from_checkpoint=none
    checkpoint.max_lost_work_seconds=.inf checkpoint.asynchronous=false
    checkpoint.every_steps= checkpoint.every_minutes= checkpoint.every_tokens=
    checkpoint.keep_every_steps= checkpoint.keep_epochs=0 checkpoint.keep_last=1 checkpoint.mirror=
    evaluation.samples_every_steps=0 evaluation.tasks=[] evaluation.tasks_every_steps=
    metrics.trackers=[] metrics.detail_every_steps=0 metrics.histogram_every_steps=0
    precision.statistics_every_steps=0 precision.shadow_every_steps=0
    profile.steps= profile.memory_history=false
"""
"""What a launch leaves out that only trains."""


@dataclass(frozen=True)
class Variant:
    """One way to compute the same run."""

    recipe: str | None = None
    """fp8's recipe by name; None: bf16."""
    is_compiled: bool = False
    is_emulated: bool = False
    """Whether it only rounds as fp8 does: the tests' stand-in, which is no fp8 and gains nothing."""

    @property
    def asked(self) -> str:
        """The cluster file's `mixed_precision`."""
        return "fp8" if self.recipe else "bf16"

    @property
    def label(self) -> str:
        """What the run has to say that it computed in."""
        return "fp8 emulation" if self.is_emulated else self.asked

    @property
    def name(self) -> str:
        """What the table calls it."""
        recipe = f" {self.recipe}" if self.recipe else ""
        return f"{self.label}{recipe}{'+compile' if self.is_compiled else ''}"

    @property
    def word(self) -> str:
        """The same as part of a file's name."""
        return self.name.replace(" ", "-").replace("+", "-")


@dataclass(frozen=True)
class Missing:
    """A variant that is not measured, or could not be."""

    name: str
    reason: str


def choose(
    decisions: Mapping[str, Decision], *, torch_version: tuple[int, int], no_compiler: str | None
) -> tuple[list[Variant], list[Missing]]:
    """What is measured, bf16 first, and what is not.

    decisions     what this machine would compute in, by `bf16` and each recipe's name
    no_compiler   why torch.compile cannot work here at all
    """
    chosen, missing = [], []
    for name, decision in decisions.items():
        eager = Variant(None if name == "bf16" else name, is_emulated=decision.emulated)
        compiled = Variant(eager.recipe, is_compiled=True, is_emulated=decision.emulated)
        if decision.mode != eager.asked:
            missing.append(Missing(eager.name, decision.reason))
            continue
        chosen.append(eager)
        why_not = no_compiler
        if eager.recipe and decision.emulated:
            why_not = "an emulation is not"
        elif eager.recipe:
            why_not = uncompiled_because(RECIPES[eager.recipe], torch_version) or no_compiler
        if why_not:
            missing.append(Missing(compiled.name, f"not compiled: {why_not}"))
        else:
            chosen.append(compiled)
    return chosen, missing


def settings_for(config: Config, variant: Variant) -> list[str]:
    """What a launch has other than the recipe, as `key=value`: it trains as the run does, and does nothing else."""
    steps = max(config.max_steps, OUT_OF_REACH)
    fp8 = [f"precision.recipe={variant.recipe}", "precision.required=true"] if variant.recipe else []
    return [*fp8, f"max_steps={steps}", f"evaluation.every_steps={steps}", *_NOTHING_ELSE.split()]
