"""The checkpoints of a run as a table: what they are, why they are kept, and whether they are whole."""

import json
import time
from datetime import datetime
from pathlib import Path

from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.retention import Policy, tiers
from trainer.checkpoint.store import CheckpointStore, Entry, verify
from trainer.config.load import load_resolved
from trainer.errors import CheckpointError
from trainer.text import count, duration, size, table


def listing(folder: Path, *, as_json: bool = False) -> str:
    """Every checkpoint in a folder, newest first. Looks at manifests, names and sizes; `verification` reads the bytes."""
    entries = _entries(folder)
    kept = _kept(entries)
    if as_json:
        return "\n".join(json.dumps(_facts(entry, kept)) for entry in entries)
    rows: list[tuple[str, ...]] = [("step", "age", "kept as", "loss", "val loss", "tokens", "size", "whole?")]
    for entry in entries:
        facts = _facts(entry, kept)
        rows.append(
            (
                str(entry.step),
                duration(facts["age_seconds"]) if facts["age_seconds"] is not None else "?",
                ", ".join(facts["tiers"]) or "-",
                _loss(facts["loss"]),
                _loss(facts["val_loss"]),
                count(facts["tokens"]) if facts["tokens"] is not None else "?",
                size(facts["bytes"]),
                entry.problem or "yes",
            )
        )
    aside = sorted(path.name for path in folder.glob(".*-step-*"))
    note = f"\n  set aside: {', '.join(aside)}" if aside else ""
    return f"{folder}\n{table(rows)}{note}"


def verification(folder: Path) -> tuple[str, bool]:
    """Reads every byte of every checkpoint in a folder; returns the findings, and whether all are sound."""
    lines, all_sound = [], True
    for entry in _entries(folder):
        started = time.perf_counter()
        problems = verify(entry.path)
        all_sound &= not problems
        took = duration(time.perf_counter() - started)
        found = "; ".join(problems) if problems else f"sound ({size(entry.manifest.num_bytes)} read in {took})"
        lines.append(f"{entry.path.name}: {found}")
    return "\n".join(lines), all_sound


def _entries(folder: Path) -> list[Entry]:
    if (folder / MANIFEST).is_file():
        return [CheckpointStore(folder.parent).entry(folder)]
    entries = CheckpointStore(folder).entries()
    if not entries:
        raise CheckpointError(
            f"{folder} holds no checkpoints (folders step-*); train first, or name a run or its folder"
        )
    return entries


def _kept(entries: list[Entry]) -> dict[int, list[str]]:
    """The tiers of each checkpoint, by the policy in the newest one's own config."""
    whole = [entry for entry in entries if entry.manifest and not entry.problem]
    if not whole:
        return {}
    wanted = load_resolved(whole[0].path / "config.yaml").checkpoint
    return tiers([entry.manifest for entry in whole], Policy(wanted.keep_last, wanted.keep_best))


def _facts(entry: Entry, kept: dict[int, list[str]]) -> dict:
    manifest = entry.manifest
    age = time.time() - datetime.fromisoformat(manifest.created).timestamp() if manifest else None
    return {
        "step": entry.step,
        "path": str(entry.path),
        "reason": manifest.reason if manifest else None,
        "tiers": kept.get(entry.step, []),
        "age_seconds": age,
        "loss": manifest.loss if manifest else None,
        "val_loss": manifest.val_loss if manifest else None,
        "tokens": manifest.tokens if manifest else None,
        "bytes": sum(path.stat().st_size for path in entry.path.rglob("*") if path.is_file()),
        "problem": entry.problem,
    }


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
