"""Does `compare`'s band hold 95 of 100 gaps between runs of one recipe? Real short runs of many seeds, every pair of them judged.

    python tests/benchmarks/compare_coverage.py [--seeds 21] [--steps 300] [--ends 1.0] [--runs FOLDER] [--json FILE]

Trains the Shakespeare corpus with a model of 2 layers of 32, one run a seed, and judges each pair, at each of the ENDS (shares of the run),
as if the two were of different recipes, so that the band is that of one who has nothing but these two; then each pair again with three more seeds among
the runs, which measure the noise. Counted is how often the gap of the training loss and of the validation loss is inside its band. Ends
with 1 where fewer than 95 of 100 are. `--runs` has runs that were trained before, or keeps those that are trained now.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402

from tests.launching import start, write_recipe  # noqa: E402
from trainer.metrics.curves import CURVE, read_records  # noqa: E402
from trainer.tools.compare.judge import judge  # noqa: E402
from trainer.tools.compare.runs import Run, read_runs  # noqa: E402

WANTED = 0.95
NUM_MEASURING = 3


def train_all(folder: Path, seeds: int, steps: int) -> None:
    """One run a seed; those that are there are left as they are."""
    for seed in range(1, seeds + 1):
        place = folder / f"seed-{seed:02}"
        if (place / "runs" / place.name / "outcome.json").is_file():
            continue
        place.mkdir(parents=True, exist_ok=True)
        recipe = write_recipe(
            place,
            name=place.name,
            seed=seed,
            max_steps=steps,
            global_batch=4,
            micro_batch=2,
            sequence_length=128,
            data={"corpus": "shakespeare", "train": [], "validation": [], "tokenizer": None},
            schedule={"warmup_steps": 20},
            checkpoint={"every_steps": steps, "keep_last": 1},
            evaluation={"every_steps": steps // 6, "num_sequences": 32},
            metrics={"trackers": [], "histogram_every_steps": 0, "console_every_steps": 100},
        )
        run = start(recipe)
        if run.wait() != 0:
            sys.exit(f"seed {seed}: {run.text()[-2000:]}")


def cut_at(folders: Sequence[Path], share: float, steps: int, place: Path) -> list[Run]:
    """The runs as they stood after this share of their steps."""
    for folder in folders:
        copy = place / f"{share}" / folder.name
        copy.mkdir(parents=True)
        for name in ("config.yaml", "journal.jsonl", "outcome.json"):
            shutil.copy(folder / name, copy / name)
        records = (record for record in read_records(folder / CURVE) if record["step"] <= share * steps)
        (copy / CURVE).write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_runs([str(place / f"{share}" / folder.name) for folder in folders])


def coverage(ends: Sequence[Sequence[Run]], num_measuring: int) -> dict[str, Any]:
    """Of each quantity how often the gap of a pair is inside its band, with so many other seeds among the runs; `ends` has the runs at each end."""
    gaps: dict[str, list[tuple[float, float]]] = {}
    for runs in ends:
        for what, found in gaps_of(runs, num_measuring).items():
            gaps.setdefault(what, []).extend(found)
    return {what: _counted(np.array(found)) for what, found in gaps.items()}


def gaps_of(runs: Sequence[Run], num_measuring: int) -> dict[str, list[tuple[float, float]]]:
    """(gap, band) of every pair, by quantity."""
    gaps: dict[str, list[tuple[float, float]]] = {}
    for number, (a, b) in enumerate(itertools.combinations(runs, 2)):
        others = [run for run in runs if run not in (a, b)]
        measuring = [others[(number + place) % len(others)] for place in range(num_measuring)]
        # Another recipe, as far as the judge knows: what nobody reads differs.
        other = replace(b, settings={**b.settings, "model.config.note": "another recipe"})
        (pair, *_) = judge([a, other, *measuring]).pairs
        for what, judged in pair.judged.items():
            gaps.setdefault(what, []).append((judged.gap.value, judged.gap.band))
    return gaps


def _counted(found: np.ndarray) -> dict[str, float]:
    values, bands = np.abs(found).T
    return {
        "pairs": len(values),
        "inside": float((values <= bands).mean()),
        "gap_deviation": float(np.sqrt((values**2).mean())),
        "median_band": float(np.median(bands)),
        "median_band_over_gap_deviation": float(np.median(bands) / np.sqrt((values**2).mean())),
    }


def main() -> None:
    """Prints the shares; ends with 1 where one is too small."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ends", type=float, nargs="+", default=[1.0])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = typed.runs or Path(temporary)
        train_all(folder, typed.seeds, typed.steps)
        folders = [path for path in sorted(folder.glob("seed-*/runs/seed-*")) if (path / "outcome.json").is_file()]
        ends = [cut_at(folders, share, typed.steps, Path(temporary) / "cut") for share in typed.ends]
    result = {
        "seeds": len(folders),
        "steps": typed.steps,
        "ends": typed.ends,
        "tokens": ends[-1][0].curve.last_tokens,
        "alone": coverage(ends, 0),
        "measured": coverage(ends, NUM_MEASURING),
    }
    print(json.dumps(result, indent=1))
    if typed.json:
        typed.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(found["inside"] < WANTED for which in ("alone", "measured") for found in result[which].values()))


if __name__ == "__main__":
    main()
