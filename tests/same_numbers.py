"""Shows that no number moved between two commits: the same runs, killed and resumed, in both, compared bit for bit.

    .venv/bin/python tests/same_numbers.py OLD [NEW]     NEW: HEAD where it is left out

Each run of RUNS takes 30 steps and is killed by SIGKILL in its 18th, so that it resumes from its checkpoint of step 15. What is compared:
every value of metrics.jsonl that is not a time, a rate or a reading of the machine, and every tensor of the last checkpoint. Both commits
run in the environment of the Python that runs this. Exit code 0: nothing moved; 1: something did, and it is listed.
"""

import argparse
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

PROJECT = Path(__file__).resolve().parents[1]

STEPS, KILLED_IN = 30, 18
ACCUMULATION = 4

GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
FP8 = {"bf16_first_blocks": 0, "bf16_last_blocks": 0, "statistics_every_steps": 1, "shadow_every_steps": 2}

RUNS: dict[str, dict[str, Any]] = {
    "adamw, one process": {"model": {"config": GPT2}, "optimizer": {"name": "adamw"}},
    "muon, two processes": {"model": {"config": LLAMA}, "optimizer": {"name": "muon"}, "processes": 2},
    "fp8 by the emulation, one process": {"model": {"config": LLAMA}, "precision": FP8, "mode": "fp8"},
}
"""What each run has of its own; `processes` and `mode` (the precision that is asked for) are no settings of the recipe."""

SETTINGS = {
    "max_steps": STEPS,
    "checkpoint": {"every_steps": 5, "keep_last": 9},
    "metrics": {"detail_every_steps": 3, "histogram_every_steps": 0},
    "evaluation": {"every_steps": 8, "tasks": ["shakespeare_lines"], "task_items": 8},
}

NOT_COMPARED = re.compile(
    r"(seconds|tokens_per_second|mfu|replay_key|slowdown)$|^(time|host|gpu|machine|speed|disk|checkpoint|promise|resume|memory)/"
)
"""Tags of times, rates and readings of the machine, and of what a kill and a resume themselves say."""


class Difference(NamedTuple):
    """One place in which two commits are not alike."""

    run: str
    place: str
    old: Any
    new: Any


# In one commit's tree


def kill_at(num_backward_passes: int) -> None:
    """Lets this process be killed at the start of its N-th backward pass: always at the same point of training."""
    backward, passed = torch.Tensor.backward, 0

    def counted(self: torch.Tensor, *arguments: Any, **options: Any) -> None:
        nonlocal passed
        passed += 1
        if passed == num_backward_passes:
            os.kill(os.getpid(), signal.SIGKILL)
        backward(self, *arguments, **options)

    torch.Tensor.backward = counted


def prepare(mode: str, killed: bool) -> None:
    """What each rank does before it runs."""
    if mode == "fp8":
        from tests import emulation

        emulation.install()
    if killed:
        kill_at((KILLED_IN - 1) * ACCUMULATION + 1)


def run_all(folder: Path) -> None:
    """Takes every run in the tree that this process was started in: killed, then resumed to its end."""
    from tests.launching import Started, write_recipe

    for name, own in RUNS.items():
        processes, mode = own.get("processes", 1), own.get("mode", "no")
        place = folder / name
        place.mkdir(parents=True)
        settings = {key: value for key, value in own.items() if key not in ("processes", "mode")}
        recipe = write_recipe(place, **SETTINGS, **settings, global_batch=2 * ACCUMULATION * processes)
        for killed, expected in ((True, -signal.SIGKILL), (False, 0)):
            before = functools.partial(prepare, mode, killed)
            run = Started(recipe, [], processes, before, environment={"ACCELERATE_MIXED_PRECISION": mode})
            code = run.wait()
            assert code == expected, f"{name}: exit code {code}, expected {expected}\n{run.text()}"


# Both


def tree_of(commit: str, folder: Path) -> Path:
    """The files of a commit, with this program among its tests."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    shutil.copy(__file__, folder / "tests" / "same_numbers.py")
    return folder


def records_of(run: Path, new_names: dict[str, str]) -> dict[str, Any]:
    """Every compared value of a curve, by its place `step 3 loss`."""
    found: dict[str, Any] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind = "" if "loss" in record else "evaluation "
        for tag, value in record.items():
            name = new_names.get(tag, tag)
            if not NOT_COMPARED.search(tag) and not NOT_COMPARED.search(name):
                found[f"{kind}step {record['step']} {name}"] = value
    return found


def tensors_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint by `file key`; of random streams and the position in the data the bytes."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {
        f"model {name}": value for name, value in load_file(checkpoint / "model.safetensors").items()
    }
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".bin":
            found |= flat(torch.load(path, weights_only=True, map_location="cpu"), path.name)
        elif path.name.startswith(("random_states", "custom_checkpoint")):
            found[path.name] = path.read_bytes()
    return found


def flat(value: Any, place: str) -> dict[str, Any]:
    """The leaves of nested dicts and sequences, by their place."""
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{place} {name}").items()}
    if isinstance(value, (list, tuple)):
        return {key: leaf for number, part in enumerate(value) for key, leaf in flat(part, f"{place} {number}").items()}
    return {place: value}


def same(old: Any, new: Any) -> bool:
    """Equal to the bit."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return old.dtype == new.dtype and old.shape == new.shape and old.numpy().tobytes() == new.numpy().tobytes()
    return type(old) is type(new) and (old == new or old is new)


def differences(run: str, old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    """The places in which two sets of values by place differ; a place that one lacks is a difference."""
    places = [
        place for place in {**old, **new} if place not in old or place not in new or not same(old[place], new[place])
    ]
    return [Difference(run, place, old.get(place, "missing"), new.get(place, "missing")) for place in places]


def renamed_tags(tree: Path) -> dict[str, str]:
    """Old tag -> new tag, by the alias table of a tree that has one."""
    script = "from trainer.aliases import TAGS; import json; print(json.dumps(dict(TAGS)))"
    if not (tree / "trainer" / "aliases.py").is_file():
        return {}
    return json.loads(subprocess.run([sys.executable, "-c", script], cwd=tree, check=True, capture_output=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit; or, with --one, the folder to run in")
    parser.add_argument("new", nargs="?", default="HEAD", help="a commit")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        run_all(Path(chosen.old))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        trees = {
            side: tree_of(commit, Path(scratch) / side) for side, commit in (("old", chosen.old), ("new", chosen.new))
        }
        for side, tree in trees.items():
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            words = [sys.executable, "-m", "tests.same_numbers", "--one", str(Path(scratch) / f"{side}-runs")]
            subprocess.run(words, cwd=tree, env=environment, check=True)
        found: list[Difference] = []
        for run in RUNS:
            names = renamed_tags(trees["new"])
            old, new = (Path(scratch) / f"{side}-runs" / run for side in ("old", "new"))
            values = [records_of(place / "runs" / "tiny", names) for place in (old, new)]
            tensors = [tensors_of(place / "checkpoints" / "tiny" / f"step-{STEPS:08d}") for place in (old, new)]
            unlike = differences(run, *values) + differences(run, *tensors)
            print(
                f"{run}: {len(values[0])} values and {len(tensors[0])} tensors and states compared, {len(unlike)} differ"
            )
            found += unlike
    for difference in found[:40]:
        print(f"  {difference.run}: {difference.place}: {difference.old} -> {difference.new}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
