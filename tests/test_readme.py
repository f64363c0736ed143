"""What README and pages say is held to the tree and to the results of the benchmarks."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.shown_figures import rewrite
from search_client.config import resolve
from search_client.spaces import load_space

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NOT_LISTED = re.compile(
    r"(.*/)?__(init|main)__\.py|tests/.*|migrations/.*|docs/(decisions|images)/.*|benchmarks/results/.*"
)
UNLISTED_AT_THE_TOP = {".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"}


def tracked_files() -> set[str]:
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    return {path for path in listed.splitlines() if (ROOT / path).exists()}


def mapped_paths() -> list[str]:
    """Every path named in the first column of the file map."""
    section = README.split("## What is where")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]


def test_every_file_is_in_the_map() -> None:
    wanted = {path for path in tracked_files() if not NOT_LISTED.fullmatch(path)} - UNLISTED_AT_THE_TOP
    assert wanted - set(mapped_paths()) == set()


def test_everything_in_the_map_exists() -> None:
    assert [path for path in mapped_paths() if not (ROOT / path).exists()] == []


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_files_that_the_guide_shows_are_read_as_they_stand(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    shown = re.findall(r"^```\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    (space,) = [text for text in shown if text.startswith('name = "mine"')]
    (settings,) = [text for text in shown if text.startswith('space = "basic"')]
    (tmp_path / "space.toml").write_text(space)
    (tmp_path / "settings.toml").write_text(settings)
    assert load_space(str(tmp_path / "space.toml")).layers[0].choices == ("IBConv_K3_E3",)
    assert resolve({}, file=tmp_path / "settings.toml").latency_targets_ms == (55, 67, 79)


def measured_rows(page: Path) -> list[tuple[str, str, str, str]]:
    """(benchmark, figure, value and range, target) of every row of a page that shows a figure."""
    pattern = r"^\| `(\w+)\.(\w+)` \|[^|]*\| ([^|]+) \| ([^|]*)\|$"
    return re.findall(pattern, page.read_text(), re.MULTILINE)


ALL_FIGURES = ROOT / "docs" / "measured.md"


@pytest.mark.parametrize(
    ("benchmark", "figure", "shown", "target"), [*measured_rows(ROOT / "README.md"), *measured_rows(ALL_FIGURES)]
)
def test_every_figure_is_the_one_that_the_benchmark_wrote(benchmark: str, figure: str, shown: str, target: str) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    written = results["figures"][figure]
    value, low, high = (f"{written[key]:.3g}" for key in ("value", "low", "high"))
    assert shown == f"{value} {written['unit']} ({low} to {high})"
    aim = results["targets"].get(figure)
    expected = "" if aim is None else f"{aim['bound']} {aim['value']:g}, {'met' if aim['met'] else 'missed'} "
    assert target == expected


def test_every_benchmark_and_every_target_is_shown() -> None:
    shown = {(benchmark, figure) for benchmark, figure, _, _ in measured_rows(ALL_FIGURES)}
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert path.stem in {benchmark for benchmark, _ in shown}
        assert {(path.stem, figure) for figure in json.loads(path.read_text())["targets"]} <= shown


def test_a_benchmark_rewrites_the_rows_of_its_figures_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    kept = ["Text.", "| figure | what | value (range) | target |", "| `other.time_s` | of another | 1 s (1 to 1) | |"]
    old = ["| `mine.time_s` | what | 9 s (9 to 9) | <= 5, missed |", "| `mine.gone` | no longer | 1 s (1 to 1) | |"]
    page.write_text("\n".join([*kept, *old, ""]))
    time_s = {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "s"}
    aim = {"time_s": {"bound": "<=", "value": 5.0, "met": True}}
    rewrite(page, {"benchmark": "mine", "figures": {"time_s": time_s}, "targets": aim})
    new = ["| `mine.time_s` | what | 2 s (1.5 to 2.5) | <= 5, met |", old[1]]
    assert page.read_text().splitlines() == [*kept, *new]
