"""Runs of a month of short steps, written without training for a month."""

import json
from pathlib import Path

from trainer.metrics.curves import CURVE, KEY_EVERY_RECORDS
from trainer.metrics.index import BLOCK_STEPS, INDEX

STEPS = 15_000_000
STEP_TOKENS = 8192
SAVE_EVERY, EVALUATE_EVERY = 300, 10_000

_RECORD = (
    '{{"step":{step},"tokens":{tokens},"lr":0.000599999999,"epoch":12.3457,"data_digest":"{digest:016x}","loss":{loss:.16f},'
    '"loss_smoothed":3.12346,"grad_norm":0.12345678955316544,"tokens_per_second":40960.1,"step_seconds":0.2,"mfu":0.41234{key}}}\n'
)


def record_line(step: int, seed: int = 1) -> str:
    """A step's line, as long as one is at the end of a month."""
    noise = (step * 7919 * seed) % 1009 / 10_000
    key = ',"replay_key":"0123456789abcdef"' if step % KEY_EVERY_RECORDS == 0 else ""
    return _RECORD.format(
        key=key, step=step, tokens=step * STEP_TOKENS, digest=step * seed, loss=3 + 4 * (step + 5) ** -0.1 + noise
    )


def write_facts(folder: Path, seed: int, steps: int) -> None:
    """What a run's folder has beside its curve; the journal tells of a save a minute."""
    folder.mkdir(parents=True)
    settings = {
        "name": folder.name,
        "seed": seed,
        "max_steps": steps,
        "checkpoints_folder": "checkpoints",
        "data": {"corpus": "plays"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    (folder / "outcome.json").write_text(json.dumps({"outcome": "interrupted", "step": steps, "reason": "asked to"}))
    save = '{"time": "2026-01-01T00:00:00.000+00:00", "event": "save", "step": %d, "digest": "0123456789abcdef", "bytes": 1500000000, "seconds": 9.5, "reason": "budget"}\n'
    start = (
        json.dumps({"event": "start", "precision": "bf16", "processes": 8, "machine": "8 processes on a GPU each"})
        + "\n"
    )
    (folder / "journal.jsonl").write_text(start + "".join(save % step for step in range(SAVE_EVERY, steps, SAVE_EVERY)))


def write_thinly(folder: Path, seed: int = 1, steps: int = STEPS) -> None:
    """A run whose curve is a hole of the disk where its index tells of it, and whole at its end."""
    write_facts(folder, seed, steps)
    num_bytes, begin, tokens = len(record_line(steps // KEY_EVERY_RECORDS * KEY_EVERY_RECORDS)), 0, 0
    num_blocks = steps // BLOCK_STEPS
    with open(folder / INDEX, "w") as index:
        for number in range(num_blocks):
            step, end = (number + 1) * BLOCK_STEPS, begin + BLOCK_STEPS * num_bytes
            tokens = step * STEP_TOKENS
            loss = json.loads(record_line(step, seed))["loss"]
            sums = {
                "loss": loss,
                "lr": 0.0006,
                "grad_norm": 0.12,
                "tokens_per_second": 40960.1,
                "mfu": 0.41,
                "tokens": tokens,
            }
            block = {
                "begin": begin,
                "end": end,
                "step": step,
                "num_steps": BLOCK_STEPS,
                "tokens": tokens,
                "finite_tokens": tokens,
                "seconds": 0.2 * BLOCK_STEPS,
                "elapsed": 0.1 * BLOCK_STEPS**2,
                "sums": {name: BLOCK_STEPS * value for name, value in sums.items()},
                "medians": {"tokens_per_second": 40960.1, "mfu": 0.41},
                "lowest": loss - 0.1,
                "highest": loss + 0.1,
                "highest_grad_norm": 1.0,
                "digest": f"{step * seed:016x}",
                "evaluations": [{"step": step, "tokens": tokens, "val_loss": loss}]
                if step // EVALUATE_EVERY > (step - BLOCK_STEPS) // EVALUATE_EVERY
                else [],
            }
            index.write(json.dumps(block, separators=(",", ":")) + "\n")
            begin = end
    with open(folder / CURVE, "wb") as curve:
        first = num_blocks * BLOCK_STEPS - 1  # by the last record that the index tells of it is known to fit
        curve.seek((first - 1) * num_bytes)
        for step in range(first, steps + 1):
            line = record_line(step, seed).encode()
            curve.write(line[:-2] + b" " * (num_bytes - len(line)) + line[-2:])
