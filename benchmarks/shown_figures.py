"""The rows of README.md and docs/measured.md that show figures, rewritten by the benchmark that measured them.

A row is `| figure | what | value (range) | target |`. People write which figures are shown and what they are;
numbers and verdicts follow from the results file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md")
ROW = re.compile(r"^(?P<head>\| `(?P<benchmark>\w+)\.(?P<figure>\w+)` \|[^|]*\|)[^|]*\|[^|]*\|$", re.MULTILINE)


def rewrite(page: Path, results: Mapping[str, Any]) -> None:
    """Show what the document of a results file holds, wherever a page has a row for it."""

    def row(match: re.Match[str]) -> str:
        if match["benchmark"] != results["benchmark"] or match["figure"] not in results["figures"]:
            return match[0]
        return match["head"] + _cells(results, match["figure"])

    page.write_text(ROW.sub(row, page.read_text()))


def _cells(results: Mapping[str, Any], name: str) -> str:
    """The last two cells of a figure's row."""
    figure, target = results["figures"][name], results["targets"].get(name)
    value, low, high = (f"{figure[key]:.3g}" for key in ("value", "low", "high"))
    verdict = (
        "" if target is None else f"{target['bound']} {target['value']:g}, {'met' if target['met'] else 'missed'} "
    )
    return f" {value} {figure['unit']} ({low} to {high}) | {verdict}|"
