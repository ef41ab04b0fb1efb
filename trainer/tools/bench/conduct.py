"""The whole measurement: the variants that this machine has are launched in turns, ended once their steps are taken, and compared."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer import files
from trainer.config.cluster import Cluster, missing_compiler, write_variant
from trainer.config.schema import Config
from trainer.errors import ConfigError, LaunchError
from trainer.journal import read_events
from trainer.metrics.curves import CURVE, read_records
from trainer.metrics.sampling import SAMPLE_SECONDS
from trainer.precision.measured import store
from trainer.tools.bench.choose import Missing, Variant, choose, settings_for
from trainer.tools.bench.judge import judge
from trainer.tools.bench.measure import WARM_UP_STEPS, measurement, peaks_of
from trainer.tools.bench.result import Result
from trainer.tools.bench.survey import Survey
from trainer.tools.trial.sandbox import Sandbox, ended_by_signals, sandbox_of
from trainer.tools.trial.tracked import Launchable, TrackedLaunch, cannot_run, how_it_failed

Plan = Callable[[Path, Sequence[str]], Launchable]
"""Checks a launch with this cluster file and further `key=value` words after those that were typed: launcher.check_launch."""

ROUNDS = 2
"""Every variant has its turn, and then every variant once more: a machine that warms up or is shared shows it."""

FIRST_SECONDS, HANG_FACTOR = 3600.0, 10.0
"""Seconds that the first launch may take, in which a compiler may run; a later one may take this factor times as long as well."""

MEMORY_SECONDS = SAMPLE_SECONDS + 5.0
"""A launch of the first round goes on for at most so long after its steps, until memory was looked at for the second time."""

POLL_SECONDS = 0.1

Steps = list[dict[str, Any]]


def bench(
    config: Config,
    cluster: Cluster,
    plan: Plan,
    *,
    steps: int,
    survey: Callable[[Config, Cluster], Survey],
    say: Callable[[str], None],
) -> Result:
    """Measures the run of this config under this cluster file, stores the result where the machine was steady, and leaves nothing else.

    steps    how many are timed in each launch
    survey   says what this machine can do (survey.py)
    say      hears of each part as it begins
    raises   TrainerError when not even bf16 runs
    """
    began = time.monotonic()
    if cluster.num_machines > 1:
        raise ConfigError(
            f"cluster file {cluster.path} is for {cluster.num_machines} machines, and bench precision launches on one; take a file with "
            "num_machines: 1 and the processes of one machine"
        )
    say("looking at what this machine can do")
    seen = survey(config, cluster)
    major, minor = version("torch").split(".")[:2]
    no_compiler = missing_compiler() if cluster.use_cpu else None
    variants, missing = choose(seen.decisions, torch_version=(int(major), int(minor)), no_compiler=no_compiler)
    if not variants or variants[0].recipe:
        raise LaunchError(
            f"there is nothing to compare with: {seen.decisions['bf16'].sentence}; take a machine that computes in bf16"
        )
    with ended_by_signals(), sandbox_of(config, "bench", say) as sandbox, ExitStack() as processes:
        try:
            site = _Benchmark(config, cluster, plan, sandbox, processes, WARM_UP_STEPS + steps, say)
            taken = site.launch_all(variants)
        except LaunchError:
            sandbox.is_kept = True
            raise
    result = _result(config, seen, steps, taken, [*site.failed, *missing], time.monotonic() - began)
    if not result.is_steady:
        return result
    facts = {name: fact for name, fact in result.facts().items() if name in ("verdict", "measured", "missing")}
    runs = files.project_folder() / config.runs_folder
    stored_in = store(runs, seen.conditions, result.date, result.judgement.gains, **facts)
    return replace(result, stored_in=stored_in)


def _result(
    config: Config, seen: Survey, steps: int, taken: dict[Variant, list[Steps]], missing: list[Missing], seconds: float
) -> Result:
    tokens_a_step = config.global_batch * config.sequence_length
    reference = next((rounds[0] for variant, rounds in taken.items() if variant == Variant()), None)
    measured = [
        measurement(variant, rounds, reference, tokens_a_step=tokens_a_step, max_loss_gap=config.precision.max_loss_gap)
        for variant, rounds in taken.items()
    ]
    return Result(
        name=config.name,
        settings=settings_for(config, Variant()),
        conditions=seen.conditions,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=ROUNDS,
        steps=steps,
        total_tokens=config.max_steps * tokens_a_step,
        measured=measured,
        missing=missing,
        judgement=judge(measured),
        seconds=seconds,
    )


@dataclass
class _Benchmark:
    """Launches the variants in turns, each in folders of its own."""

    config: Config
    cluster: Cluster
    plan: Plan
    sandbox: Sandbox
    processes: ExitStack
    last_step: int
    """The step after which a launch has nothing more to show."""
    say: Callable[[str], None]
    failed: list[Missing] = field(default_factory=list)
    longest_seconds: float = 0.0

    def launch_all(self, variants: Sequence[Variant]) -> dict[Variant, list[Steps]]:
        """The steps of each variant by round, of those that failed in none. raises LaunchError when bf16 fails, or one hangs"""
        taken: dict[Variant, list[Steps]] = {variant: [] for variant in variants}
        for number in range(1, ROUNDS + 1):
            for variant in list(taken):
                self.say(f"round {number} of {ROUNDS}: {variant.name}")
                steps = self._launch(variant, number)
                if steps is None:
                    del taken[variant]
                else:
                    taken[variant].append(steps)
        return taken

    def _launch(self, variant: Variant, number: int) -> Steps | None:
        """The steps of one launch; None when it failed, which is then announced."""
        name = f"{variant.word}-{number}"
        runs, checkpoints = self.sandbox.both
        cluster_file, log = runs / f"{variant.word}.yaml", runs / f"{name}.log"
        write_variant(self.cluster, cluster_file, precision=variant.asked, compiled=variant.is_compiled)
        folders = [f"name={name}", f"runs_folder={runs}", f"checkpoints_folder={checkpoints}"]
        checked = self.plan(cluster_file, [*settings_for(self.config, variant), *folders])
        limit = FIRST_SECONDS + HANG_FACTOR * self.longest_seconds
        launched = TrackedLaunch(checked, log, limit_seconds=limit, look_seconds=POLL_SECONDS)
        self.processes.callback(launched.clear_away)
        curve = checked.folder / CURVE
        if launched.wait_for_step(self.last_step) and number == 1:
            ends = launched.seconds + MEMORY_SECONDS
            launched.wait_until(lambda: launched.seconds > ends or len(peaks_of(read_records(curve))) > 1)
        ended = launched.code
        self.longest_seconds = max(self.longest_seconds, launched.seconds)
        launched.clear_away()
        steps = [record for record in read_records(curve) if "step_seconds" in record]
        problem = None
        if len(steps) < self.last_step:
            problem = how_it_failed(checked.folder, log, ended or 0)
            if variant == Variant():
                raise cannot_run(checked.folder, f"the run fails in bf16 already: its launch {problem}", log)
        else:
            problem = self._other_than_asked(variant, checked.folder)
        if problem:
            self.say(f"{variant.name} failed: {problem}")
            self.failed.append(Missing(variant.name, f"failed: {problem}"))
        for folder in (checked.folder, checkpoints / name):
            if folder.exists():
                files.remove_folder(folder)
        return None if problem else steps

    def _other_than_asked(self, variant: Variant, folder: Path) -> str | None:
        """What a launch says that it computed in, where that is not this variant."""
        start = next(event for event in read_events(folder) if event["event"] == "start")
        if start["precision"] != variant.label:
            return f"it computed in {start['precision']}"
        if start["compiled"] != variant.is_compiled:
            return f"it ran with{'' if start['compiled'] else 'out'} torch.compile"
        return None
