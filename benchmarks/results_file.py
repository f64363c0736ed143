"""What a benchmark leaves: figures for people, and a results file with machine, date, spread and targets."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.shown_figures import PAGES, rewrite

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """A number with the lowest and the highest that was seen of it."""

    value: float
    low: float
    high: float
    unit: str

    @classmethod
    def over(cls, values: Sequence[float], unit: str) -> "Figure":
        """Median and range of repetitions."""
        return cls(median(values), min(values), max(values), unit)


@dataclass(frozen=True)
class Target:
    bound: Literal["<=", ">="]
    value: float

    def met(self, figure: Figure) -> bool:
        return figure.value <= self.value if self.bound == "<=" else figure.value >= self.value


def record(
    name: str,
    *,
    settings: Mapping[str, Any],
    figures: Mapping[str, Figure],
    targets: Mapping[str, Target] | None = None,
    save: bool,
) -> None:
    """Print the figures; where `save` says so, write them to `benchmarks/results/NAME.json` and to the pages."""
    targets = targets or {}
    table = Table("figure", "value", "low", "high", "unit", "target", title=name)
    for figure_name, figure in figures.items():
        target = targets.get(figure_name)
        verdict = ""
        if target is not None:
            verdict = f"{target.bound} {target.value:g}: {'met' if target.met(figure) else 'MISSED'}"
        numbers = [f"{number:.4g}" for number in (figure.value, figure.low, figure.high)]
        table.add_row(figure_name, *numbers, figure.unit, verdict)
    Console().print(table)
    if not save:
        return
    document = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "settings": dict(settings),
        "figures": {key: vars(figure) for key, figure in figures.items()},
        "targets": {
            key: {"bound": target.bound, "value": target.value, "met": target.met(figures[key])}
            for key, target in targets.items()
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for page in PAGES:
        rewrite(page, document)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    processor = named.group(1) if named else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
