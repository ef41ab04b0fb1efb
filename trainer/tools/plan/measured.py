"""The share of a device's peak that an earlier run had, by which another one is reckoned."""

import statistics

from trainer.config.folders import find_run
from trainer.config.load import load_resolved
from trainer.errors import TrainerError
from trainer.metrics.curves import CURVE, last_records
from trainer.tools.plan.known import built_shapes, data_of, shapes_of
from trainer.tools.plan.pace import Pace, cpu_peak, work_of

WARM_UP_STEPS = 5
"""The first steps of a run are not those that go on for days."""


def pace_of(run: str) -> Pace:
    """What a run had by the records of its newest steps: its own MFU on a GPU, and on a CPU against the product measured now.

    raises  TrainerError where there is no such run, or too few steps of it
    """
    folder = find_run(run)
    config = load_resolved(folder / "config.yaml")
    records = [r for r in last_records(folder / CURVE) if r.get("step_seconds") and r["step"] > WARM_UP_STEPS]
    if not records:
        raise TrainerError(
            f"--like {run}: it has taken no more than {WARM_UP_STEPS} steps, so its pace is not known; name a longer run"
        )
    data = data_of(config)
    work = work_of(shapes_of(config, data) or built_shapes(config, data), config)
    source = f"as of {len(records):,} steps of {config.name}"
    if mfus := [record["mfu"] for record in records if "mfu" in record]:
        return Pace(statistics.median(mfus) * work.all / work.model, source)
    seconds = statistics.median(record["step_seconds"] for record in records)
    return Pace(work.all / seconds / cpu_peak(), source)
