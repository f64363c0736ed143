"""What the README says is held to the tree and to the results of the benchmarks."""

import json
import re
import subprocess
from pathlib import Path

import pytest

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


def measured_rows() -> list[tuple[str, str, str, str]]:
    """(benchmark, figure, value and range, target) of every row of the table of figures."""
    section = README.split("## Measured")[1].split("\n## ")[0]
    pattern = r"^\| `(\w+)\.(\w+)` \|[^|]*\| ([^|]+) \| ([^|]*)\|$"
    return re.findall(pattern, section, re.MULTILINE)


@pytest.mark.parametrize(("benchmark", "figure", "shown", "target"), measured_rows())
def test_every_figure_is_the_one_that_the_benchmark_wrote(benchmark: str, figure: str, shown: str, target: str) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    written = results["figures"][figure]
    value, low, high = (f"{written[key]:.3g}" for key in ("value", "low", "high"))
    assert shown == f"{value} {written['unit']} ({low} to {high})"
    aim = results["targets"].get(figure)
    expected = "" if aim is None else f"{aim['bound']} {aim['value']:g}, {'met' if aim['met'] else 'missed'} "
    assert target == expected


def test_every_benchmark_and_every_target_is_shown() -> None:
    shown = {(benchmark, figure) for benchmark, figure, _, _ in measured_rows()}
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert path.stem in {benchmark for benchmark, _ in shown}
        assert {(path.stem, figure) for figure in json.loads(path.read_text())["targets"]} <= shown
