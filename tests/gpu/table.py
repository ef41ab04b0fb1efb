"""What was found, as Markdown: a table for the terminal, and the passage of trainer/guides/precision.md from the stored results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu.record import file_of, is_held, read

NOT_YET = "Not yet measured: no GPU was to be had where this was written. `tests/gpu/run` measures it on one H100 or H200, and what it stores stands here."


def checks_table(found: dict[str, dict[str, Any] | None]) -> str:
    """Every check of the parts, a row each; a part without a whole file has a row that says so."""
    rows = ["| part | what | found | bar | |", "|---|---|---|---|---|"]
    for name, part in found.items():
        for check in part["checks"] if part else ():
            rows.append(
                f"| {name} | {check['name']} | {_value(check['value'])} | {check['bar']} | {'held' if check['held'] else '**NOT held**'} |"
            )
        if not part or not part["complete"]:
            rows.append(f"| {name} | | not finished | | **NOT held** |")
    return "\n".join(rows)


def passage(folder: Path, parts: Sequence[str]) -> str:
    """The guide's: what was measured on a GPU, from the results in a folder, and what was not."""
    found = {name: part for name in parts if (part := read(file_of(folder, name)))}
    if not found:
        return NOT_YET
    assert not any(part["emulated"] for part in found.values()), f"{folder} holds an emulation, which is no result"
    blocks = [_machines(found), checks_table({name: part for name, part in found.items() if name != "speed"})]
    if "speed" in found:
        blocks.append(_speed_table(found["speed"]))
    if missing := [name for name in parts if name not in found]:
        blocks.append(f"Not yet measured: {', '.join(missing)}.")
    return "\n\n".join(blocks)


def _machines(found: dict[str, dict[str, Any]]) -> str:
    machines = {
        f"{part['hardware']['device']} (driver {part['hardware']['driver']}), torch {part['versions']['torch']}, "
        f"TransformerEngine {part['versions']['transformer_engine']}"
        for part in found.values()
    }
    return f"Measured on {'; '.join(sorted(machines))}."


def _speed_table(part: dict[str, Any]) -> str:
    """A row for each way; bf16 stands beside each session of recipes, and the first is told."""
    rows = [
        "| | width | way | ms | times bf16 | times compiled bf16 | MFU (bf16's peak) | memory of a pass |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seen: dict[tuple[str, int, str], str] = {}
    for name, piece in part["pieces"].items():
        kind, width, _ = name.split(maxsplit=2)
        for way, figures in piece["ways"].items():
            seen.setdefault((kind, int(width), way), f"| {kind} | {width} | {way} | {_figures(figures)} |")
    unfinished = (
        ""
        if part["complete"] and is_held(part["checks"])
        else "\n\nThe part `speed` is not finished, or a way of it failed."
    )
    return "\n".join([*rows, *(seen[key] for key in sorted(seen, key=lambda key: key[:2]))]) + unfinished


def _figures(way: dict[str, Any]) -> str:
    if "milliseconds" not in way:
        return f"{'n/a: ' + way['not_applicable'] if 'not_applicable' in way else 'failed: ' + way['failed']} | | | |"
    ratios = [f"{way[key]:.2f}" if key in way else "unknown" for key in ("over_bf16", "over_compiled")]
    mfu = f"{way['mfu_of_bf16_peak']:.0%}" if "mfu_of_bf16_peak" in way else "unknown"
    return f"{way['milliseconds']:.2f} | {' | '.join(ratios)} | {mfu} | {way['peak_bytes'] / 1e9:.1f} GB"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
