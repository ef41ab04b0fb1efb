"""What was found out about a machine, and about a launch on it, as one result with an exit code."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer import files
from trainer.config.cluster import Cluster, fitting_cluster, lacking_gpus
from trainer.config.schema import Config
from trainer.errors import ConfigError, PrecisionError
from trainer.host_checks import HostCheck, host_checks
from trainer.precision.decide import Decision, check_required, idle_settings, setup_command
from trainer.tools.doctor.ask import ask
from trainer.tools.doctor.examine import BACKEND, LAUNCH, ROWS, TORCH, Answer
from trainer.tools.doctor.machine import Machine, read_machine

YES, NO, EMULATED = "yes", "no", "emulated"


@dataclass(frozen=True)
class Row:
    """One precision, for a model and a batch that fit it."""

    asked: str
    """The mode, and fp8's recipe."""
    decision: Decision | None
    problem: str | None = None
    """Why there is no decision: what broke when it was tried."""
    probe_error: float | None = None
    """Relative error of a small layer against fp32, where it was computed."""

    @property
    def possible(self) -> str:
        """`yes`, `no`, or `emulated` by the tests' stand-in."""
        if self.decision is None or self.decision.mode != self.decision.asked:
            return NO
        return EMULATED if self.decision.emulated else YES

    @property
    def reason(self) -> str:
        """Why; nothing for a precision that needs no reason."""
        if self.decision is None:
            return self.problem or ""
        if self.possible == YES and self.decision.asked != "fp8":
            return self.decision.speed_words
        return self.decision.reason

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "asked": self.asked,
            "possible": self.possible,
            "reason": self.reason,
            "probe_error": self.probe_error,
            "decision": self.decision.as_json() if self.decision else None,
        }


@dataclass(frozen=True)
class Launch:
    """What a launch of these words would do here."""

    cluster: str
    name: str
    """The run's."""
    num_processes: int
    decision: Decision | None
    refused: str | None
    """Why it would end before its first step."""
    remarks: tuple[str, ...] = ()
    """What else it would say: settings without effect, torch.compile left out."""

    @property
    def is_as_asked(self) -> bool:
        """Whether it would train, and in the precision that was asked for."""
        return self.refused is None and self.decision is not None and self.decision.mode == self.decision.asked

    def as_json(self) -> dict[str, Any]:
        """The launch as plain values."""
        decision = self.decision.as_json() if self.decision else None
        return {**asdict(self), "decision": decision, "is_as_asked": self.is_as_asked}


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found out."""

    machine: Machine
    torch: Answer
    """`version`, `cuda` it was built with, `num_gpus` it can use, and the `problem` with them."""
    backend: Answer
    """The `name` of TransformerEngine with its version, None where it is not installed; or the `problem` with it."""
    rows: tuple[Row, ...]
    fits: str
    """The shipped cluster file for this machine."""
    host: tuple[HostCheck, ...] = ()
    """Clock, shared memory and limits, as a run's preflight looks at them."""
    launch: Launch | None = None

    @property
    def exit_code(self) -> int:
        """0: the machine can do what was asked; 1: a launch would be refused, or train in another precision."""
        return 0 if self.launch is None or self.launch.is_as_asked else 1

    @property
    def fp8(self) -> str | None:
        """The first of fp8's recipes that this machine has; None without."""
        return next((row.asked for row in self.rows if row.asked.startswith("fp8") and row.possible == YES), None)

    @property
    def has_idle_gpus(self) -> bool:
        """Whether there are GPUs and torch can use none."""
        return self.machine.num_visible > 0 and not self.torch.get("num_gpus")

    @property
    def lacks_only_the_backend(self) -> bool:
        """Whether an installation is what one of fp8's recipes lacks, by its own reason."""
        return self.fp8 is None and any(setup_command() in row.reason for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "machine": asdict(self.machine),
            "torch": self.torch,
            "transformer_engine": self.backend,
            "precisions": [row.as_json() for row in self.rows],
            "fits": self.fits,
            "host": [asdict(check) for check in self.host],
            "launch": self.launch.as_json() if self.launch else None,
            "exit_code": self.exit_code,
        }


def diagnose() -> Diagnosis:
    """Looks at this machine."""
    answers = ask((TORCH, BACKEND, *ROWS), None, os.environ)
    rows = tuple(_row(asked, answers[asked]) for asked in ROWS)
    machine = read_machine()
    host = tuple(host_checks(files.project_folder(), pins_memory=machine.num_visible > 0))
    return Diagnosis(machine, answers[TORCH], answers[BACKEND], rows, fitting_cluster(), host)


def _row(asked: str, answer: Answer) -> Row:
    if "decision" not in answer:
        return Row(asked, None, answer["problem"])
    return Row(asked, Decision(**answer["decision"]), probe_error=answer["probe_error"])


def foresee(
    cluster: Cluster, recipe: str, overrides: list[str], config: Config, environment: Mapping[str, str]
) -> Launch:
    """What a launch would decide.

    environment   what the launch would be given
    raises        ConfigError where a mistake in what was typed would end it
    """

    def launch(decision: Decision | None, refused: str | None, *remarks: str | None) -> Launch:
        notes = tuple(remark for remark in remarks if remark)
        return Launch(cluster.path.stem, config.name, cluster.num_processes, decision, refused, notes)

    if lacking := lacking_gpus(cluster):
        return launch(None, lacking)
    asked = {"cluster": str(cluster.path.resolve()), "recipe": recipe, "overrides": overrides}
    answer = ask((LAUNCH,), asked, environment)[LAUNCH]
    if "mistake" in answer:
        raise ConfigError(answer["mistake"])
    if "problem" in answer:
        return launch(None, answer["problem"])
    decision = Decision(**answer["decision"])
    try:
        check_required(decision, config.precision)
    except PrecisionError as error:
        return launch(decision, str(error))
    idle = idle_settings(cluster.precision, config.precision)
    return launch(decision, None, decision.slow_warning, idle, answer["left_uncompiled"])
