"""What the test came to, for a person and for a program."""

from dataclasses import asdict, dataclass
from typing import Any

from trainer.text import duration, table
from trainer.tools.selftest.choose import Choice, Costs


@dataclass(frozen=True)
class Survived:
    """One kill, and what the start after it came back with."""

    killed_at_step: int
    hit_writer: bool
    start_seconds: float | None
    """From the command to where it stood again; None when that could not be seen."""
    back_at_step: int
    verdict: str | None

    @property
    def lost_steps(self) -> int:
        return self.killed_at_step - self.back_at_step


@dataclass(frozen=True)
class Result:
    """The whole test."""

    name: str
    settings: list[str]
    """Those that both runs had over the recipe's."""
    costs: Costs
    choice: Choice
    straight_seconds: float
    survived: list[Survived]
    differences: list[str]
    seconds: float
    deterministic: bool
    computed_in: str
    """The precision of the run that was never killed, and why it is not what was asked for; empty when nobody wrote it down."""
    folders: list[str]
    """Where it took place: a folder among the runs, and one among the checkpoints."""

    @property
    def is_exact(self) -> bool:
        return not self.differences

    def text(self) -> str:
        """The report, as it is printed."""
        return "\n\n".join(filter(None, (self._head(), self._table(), self._figures(), self._verdict())))

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        survived = [{**asdict(one), "lost_steps": one.lost_steps} for one in self.survived]
        return {**asdict(self), "survived": survived, "exact": self.is_exact, "verdict": self._verdict()}

    def _head(self) -> str:
        return (
            f"selftest of {self.name}: {self.choice.steps} steps straight, and the same with {len(self.survived)} kills (SIGKILL), in "
            f"{duration(self.seconds)}\ncomputed in {self.computed_in or 'a precision that nobody wrote down'}\n"
            f"over the recipe: {' '.join(self.settings)}\n"
            f"in {' and '.join(self.folders)}, under the names straight and killed"
        )

    def _table(self) -> str:
        if not self.survived:
            return ""
        rows: list[tuple[object, ...]] = [("kill", "at step", "back at", "lost", "start", "hit", "said after it")]
        for number, one in enumerate(self.survived, start=1):
            start = "-" if one.start_seconds is None else duration(one.start_seconds)
            hit, said = "trainer and writer" if one.hit_writer else "trainer", one.verdict or "nothing was lost"
            rows.append((number, one.killed_at_step, one.back_at_step, one.lost_steps, start, hit, said))
        return table(rows)

    def _figures(self) -> str:
        if not self.survived:
            return ""
        lost = max(one.lost_steps for one in self.survived)
        every, step = self.choice.every_steps, self.costs.step_seconds
        backs = [one.start_seconds for one in self.survived if one.start_seconds is not None]
        again = f" and {duration(max(backs))} at most after a kill" if backs else ""
        start = f"the first start took {duration(self.costs.start_seconds)}{again}"
        return (
            f"at most {lost} step{'s' * (lost != 1)} of {duration(step)} lost, with a checkpoint every {every}; {start}"
        )

    def _verdict(self) -> str:
        if self.is_exact:
            killed = f"all {self.choice.steps} steps of the run that was killed {len(self.survived)} times"
            return (
                f"exact: weights, moments and the numbers of {killed} equal those of the straight one to the last bit"
            )
        hint = "" if self.deterministic else "\n(deterministic is false: equal bits are not promised then)"
        others = "".join(f"\n  also: {other}" for other in self.differences[1:])
        return f"NOT exact: {self.differences[0]}{others}{hint}\nwhat the runs left is kept in {' and '.join(self.folders)}"


def plan_sentence(costs: Costs, choice: Choice, seconds_left: float) -> str:
    """What will be run, how long that should take, and that it is more than there is time for, where it is."""
    measured = f"a start takes {duration(costs.start_seconds)}, a step {duration(costs.step_seconds)}"
    killed = f"the same with {choice.num_kills} kills and a checkpoint every {choice.every_steps} steps"
    work = f"{choice.steps} steps straight, then {killed}: about {duration(choice.seconds)}"
    if choice.seconds <= seconds_left:
        return f"{measured}; {work}"
    steps_take_longer = 2 * choice.steps * costs.step_seconds > choice.seconds / 2
    shorter = "a smaller global_batch=... makes steps shorter, " if steps_take_longer else ""
    more = f"it goes on with that ({shorter}--seconds gives it more)"
    return f"{measured}; the least that proves anything is {work}, and {duration(seconds_left)} are left: {more}"
