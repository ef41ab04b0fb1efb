"""The whole test: a short launch that measures, the straight run, the run that is killed, and what the two left compared."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer import files
from trainer.config.schema import Config
from trainer.errors import LaunchError
from trainer.journal import precision_words, read_events
from trainer.metrics.curves import CURVE, read_records
from trainer.text import duration
from trainer.tools.selftest.choose import MIN_KILLS, PROBE_STEPS, Choice, Costs, choose, is_too_short, kills, longer
from trainer.tools.selftest.evidence import Ran, differences, starts
from trainer.tools.selftest.result import Result, Survived, plan_sentence
from trainer.tools.trial.sandbox import ended_by_signals, sandbox_of
from trainer.tools.trial.tracked import Launchable, TrackedLaunch, cannot_run, how_it_failed, last_step

Plan = Callable[[Sequence[str]], Launchable]
"""Checks a launch with further `key=value` words after those that were typed, and says what to run: launcher.check_launch."""

FIRST_SECONDS = 1800.0
"""How long the launch that measures may take: nothing is known of it yet, and a compiler may run in it."""

HANG_FACTOR, HANG_SECONDS = 10.0, 120.0
"""A later launch hangs when it takes longer than this factor times what was measured, and these seconds more."""

MAX_ATTEMPTS = 4
"""A machine that was busy while it was measured gives a choice of too few steps; each further attempt takes more."""

NAMES = ("straight", "killed")

_NOTHING_ELSEWHERE = """
    max_tokens= max_epochs= resume_from_checkpoint=latest checkpoint.keep_every_steps= checkpoint.mirror=
    evaluation.sample_tokens=0 evaluation.tasks=[] evaluation.tasks_every_steps= metrics.trackers=[] profile.steps=
"""


def selftest(
    config: Config, plan: Plan, *, seconds: float, say: Callable[[str], None], dice: random.Random | None = None
) -> Result:
    """Proves on this machine that a run that is killed and resumed equals the one that never was; leaves nothing unless it does not.

    config   what was typed, resolved
    seconds  what it should take; a longer time is announced with figures
    say      hears of each part as it begins
    raises   TrainerError when the run fails without being killed
    """
    began = time.monotonic()
    with ended_by_signals(), sandbox_of(config, "selftest", say) as sandbox, ExitStack() as processes:
        try:
            site = KillTest(config, plan, sandbox.both, processes, say)
            result = site.conduct(seconds, began, dice or random.Random())
            sandbox.is_kept = not result.is_exact
            return result
        except LaunchError:
            sandbox.is_kept = True
            raise


def settings_for(config: Config, steps: int, every_steps: int) -> list[str]:
    """What both runs have other than the recipe, as `key=value`: short, with frequent checkpoints, and nothing that goes elsewhere."""
    warmup = [f"schedule.warmup_steps={steps}"] if config.schedule.warmup_steps > steps else []
    held_out = min(config.evaluation.num_sequences or config.global_batch, config.global_batch)
    evaluation = [f"evaluation.every_steps={steps}", f"evaluation.num_sequences={held_out}"]
    short = [f"max_steps={steps}", *warmup, f"checkpoint.every_steps={every_steps}", *evaluation]
    return short + _NOTHING_ELSEWHERE.split()


@dataclass(frozen=True)
class Proof:
    """What one attempt came to."""

    costs: Costs
    """With the seconds of a step as the straight run had them."""
    choice: Choice
    straight_seconds: float
    survived: list[Survived]
    differences: list[str]
    """In what the killed run differs from the straight one, as sentences; how a start of it failed, if one did."""

    @property
    def is_enough(self) -> bool:
        """Whether there were kills enough, and one of them lost steps: else nothing was replayed that could differ."""
        return len(self.survived) >= MIN_KILLS and any(one.lost_steps > 0 for one in self.survived)

    @property
    def shortcoming(self) -> str:
        """Why it is not enough."""
        if len(self.survived) < MIN_KILLS:
            return f"only {len(self.survived)} of {self.choice.num_kills} kills could come before the end of {self.choice.steps} steps"
        return f"none of {len(self.survived)} kills lost a step"


def _step_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """The median over a run without its first step, in which everything is slower."""
    return statistics.median([record["step_seconds"] for record in records if "step_seconds" in record][1:])


class KillTest:
    """Launches the straight run and the killed one, each in its two folders (runs, checkpoints)."""

    def __init__(
        self, config: Config, plan: Plan, folders: tuple[Path, Path], processes: ExitStack, say: Callable[[str], None]
    ) -> None:
        self._config, self._plan, self._folders, self._processes, self._say = config, plan, folders, processes, say

    def conduct(self, seconds: float, began: float, dice: random.Random) -> Result:
        self._say(f"measuring: {PROBE_STEPS} steps")
        costs = self.measure()
        left = seconds - (time.monotonic() - began)
        choice = choose(costs, left)
        self._say(plan_sentence(costs, choice, left))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            proof = self.attempt(choice, costs, dice)
            if proof.is_enough or proof.differences or attempt == MAX_ATTEMPTS:
                break
            costs, choice = proof.costs, longer(choice, proof.costs)
            again = f"again with {choice.steps} steps and a checkpoint every {choice.every_steps}"
            self._say(f"{proof.shortcoming}: a step takes {duration(costs.step_seconds)} by now; {again}")
            self._clear(NAMES)
        if not proof.differences and not proof.is_enough:
            words = f"{proof.shortcoming}, which is too little to prove anything; start again"
            proof = replace(proof, differences=[words])
        return Result(
            **vars(proof),
            name=self._config.name,
            settings=self._settings(choice),
            seconds=time.monotonic() - began,
            deterministic=self._config.deterministic,
            computed_in=precision_words(read_events(self._folders[0] / "straight")),
            folders=[str(folder) for folder in self._folders],
        )

    def _clear(self, names: Sequence[str]) -> None:
        for folder in (place / name for place in self._folders for name in names):
            if folder.exists():
                files.remove_folder(folder)

    def _settings(self, choice: Choice) -> list[str]:
        return settings_for(self._config, choice.steps, choice.every_steps)

    def attempt(self, choice: Choice, costs: Costs, dice: random.Random) -> Proof:
        """The straight run, and the killed one unless the straight one shows that no kill could come in time."""
        self._say(f"straight: {choice.steps} steps")
        checked = self._checked("straight", self._settings(choice))
        victim = self._start("straight", checked, steps=choice.steps, costs=costs)
        self._see_it_through("straight", victim)
        seconds = victim.seconds
        costs = replace(costs, step_seconds=_step_seconds(read_records(self._folders[0] / "straight" / CURVE)))
        if is_too_short(choice, costs):
            return Proof(costs, choice, seconds, [], [])
        self._say(f"killed: the same {choice.steps} steps")
        survived, failure = self._run_killed(self._settings(choice), choice, costs, dice)
        if failure:
            return Proof(costs, choice, seconds, survived, [failure])
        reached = [one.killed_at_step for one in survived]
        found = differences(self._ran("straight"), self._ran("killed"), step=choice.steps, reached=reached)
        return Proof(costs, choice, seconds, survived, found)

    def _ran(self, name: str) -> Ran:
        return Ran(self._folders[0] / name, self._folders[1] / name)

    def _checked(self, name: str, settings: list[str]) -> Launchable:
        runs, checkpoints = self._folders
        return self._plan([*settings, f"name={name}", f"runs_folder={runs}", f"checkpoints_folder={checkpoints}"])

    def _start(self, name: str, checked: Launchable, *, steps: int = 0, costs: Costs | None = None) -> TrackedLaunch:
        """Starts a launch that may take a multiple of what was measured for this number of steps."""
        limit = FIRST_SECONDS
        if costs:
            limit = HANG_FACTOR * (costs.start_seconds + steps * costs.step_seconds + costs.end_seconds) + HANG_SECONDS
        victim = TrackedLaunch(checked, self._log(name), limit_seconds=limit)
        self._processes.callback(victim.clear_away)
        return victim

    def _log(self, name: str) -> Path:
        return self._folders[0] / f"{name}.log"

    def measure(self) -> Costs:
        """Times a launch of a few steps, which is removed."""
        checked = self._checked("probe", settings_for(self._config, PROBE_STEPS, PROBE_STEPS))
        victim = self._start("probe", checked)
        victim.wait_for_step(1)
        first = victim.seconds
        victim.wait_for_step(PROBE_STEPS)
        last = victim.seconds
        self._see_it_through("probe", victim)
        end = victim.seconds - last
        steps = [record["step_seconds"] for record in read_records(checked.folder / CURVE) if "step_seconds" in record]
        self._clear(["probe"])
        return Costs(max(0.0, first - steps[0]), steps[-1], end)

    def _see_it_through(self, name: str, victim: TrackedLaunch) -> None:
        """Waits for the end of a launch that nobody kills. raises LaunchError when it fails"""
        if code := victim.wait():
            problem = f"the run fails without being killed: the {name} launch {self._how_it_failed(name, code)}"
            raise cannot_run(self._folders[0] / name, problem, self._log(name))

    def _how_it_failed(self, name: str, code: int) -> str:
        return how_it_failed(self._folders[0] / name, self._log(name), code)

    def _run_killed(
        self, settings: list[str], choice: Choice, costs: Costs, dice: random.Random
    ) -> tuple[list[Survived], str | None]:
        """Runs, kills and starts again until the end; returns what each kill came to, and how a start failed if one did."""
        checked = self._checked("killed", settings)
        blows: list[dict[str, Any]] = []
        reached, victim = 0, self._start("killed", checked, steps=choice.steps, costs=costs)
        for kill in kills(choice, costs.step_seconds, dice):
            # Kills come later than planned where steps are short; the next one has to find steps that are new.
            if not victim.wait_for_step(max(kill.step, reached + 1)):
                break
            time.sleep(kill.delay_seconds)
            hit_writer = victim.kill(with_writer=kill.hits_writer)
            reached = last_step(checked.folder)
            victim = self._start("killed", checked, steps=choice.steps, costs=costs)
            back_seconds = victim.wait_for_resume(reached)
            blows.append({"killed_at_step": reached, "hit_writer": hit_writer, "start_seconds": back_seconds})
            back = "" if back_seconds is None else f", back after {duration(back_seconds)}"
            self._say(f"killed at step {reached}{' with its writer' if hit_writer else ''}{back}")
        code = victim.wait()
        came_back = starts(read_events(checked.folder))[1:]
        pairs = zip(blows, came_back, strict=False)
        survived = [Survived(**blow, back_at_step=it.resumed_step, verdict=it.verdict) for blow, it in pairs]
        return survived, f"start {len(blows) + 1} {self._how_it_failed('killed', code)}" if code else None
