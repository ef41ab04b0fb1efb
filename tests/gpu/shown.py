"""What a part has shown: figures against their bars, and the facts behind them; as JSON, as a table, and as README's passage."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.launching import PROJECT
from trainer.text import table

RESULTS = PROJECT / "tests" / "benchmarks" / "results"
PREFIX = "gpu_"
NOT_YET = "Not yet measured: no GPU was to be had where this was written. `tests/gpu/run` measures it on one H100 or H200 and writes the figures here."


@dataclass(frozen=True)
class Bar:
    """One figure, and what was set for it."""

    what: str
    figure: str
    """As it is printed."""
    bar: str
    """In words; `none` where a figure is only stated."""
    passed: bool = True


@dataclass(frozen=True)
class Shown:
    """One part."""

    part: str
    bars: list[Bar]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(bar.passed for bar in self.bars)

    def text(self) -> str:
        """A table for people."""
        rows = [(bar.what, bar.figure, bar.bar, "yes" if bar.passed else "NO") for bar in self.bars]
        return f"{self.part}\n{table([('what', 'figure', 'bar', 'passed'), *rows])}"

    def write(self, folder: Path, *, emulated: bool, seconds: float) -> Path:
        """Writes it with the machine it was measured on."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "part": self.part, "emulated": emulated, "passed": self.passed, "seconds": round(seconds, 1), "machine": machine(),
            "bars": [asdict(bar) for bar in self.bars], "facts": self.facts,
        }  # fmt: skip
        path = folder / f"{PREFIX}{self.part}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    facts: dict[str, Any] = {"python": platform.python_version(), "processor": platform.machine()}
    for package in ("torch", "accelerate", "transformers", "transformer_engine"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda, "driver": _driver()}
    return facts


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def passage(folder: Path, parts: Sequence[str]) -> str:
    """README's passage: the figures of the parts that were measured on a GPU, or that none was."""
    found = {part: json.loads(path.read_text(encoding="utf-8")) for part in parts if (path := folder / f"{PREFIX}{part}.json").is_file()}
    found = {part: content for part, content in found.items() if not content["emulated"]}
    if not found:
        return NOT_YET
    lines = []
    for content in found.values():
        facts = content["machine"]
        where = f"{facts.get('gpu')}, torch {facts['torch']}, TransformerEngine {facts['transformer_engine']}"
        lines += [f"| {content['part']} | {bar['what']} | {bar['figure']} | {bar['bar']}{'' if bar['passed'] else ' (NOT met)'} | {where} |" for bar in content["bars"]]
    missing = [part for part in parts if part not in found]
    rest = f"\n\nNot yet measured: {', '.join(missing)}." if missing else ""
    return "\n".join(["| part | what | figure | bar | measured on |", "|---|---|---|---|---|", *lines]) + rest
