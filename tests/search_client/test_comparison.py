import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search_client import comparison
from search_client.analyses import RunRecord, read_run
from search_client.comparison import Group, grouped, notes
from search_client.run_directory import RunFiles

Make = Callable[..., RunRecord]
SHORT = {"epochs": (4, 2, 2), "learning_rates": (0.1, 0.1, 0.1)}
UNPRUNED = {"stages": 2, "epochs": (8,), "learning_rates": (0.1,)}


@pytest.fixture
def make(make_run: Callable[..., Path]) -> Make:
    def record(name: str, **options: Any) -> RunRecord:
        return read_run(RunFiles(make_run(name, **SHORT | options)))

    return record


def labels(*runs: RunRecord) -> list[str]:
    return [group.label for group in grouped(runs)]


def test_runs_that_differ_in_their_seed_are_one_group(make: Make) -> None:
    (group,) = grouped([make("one", seed=1), make("two", seed=2)])
    assert group.label == "tiny, M = 4"
    assert [run.config["seed"] for run in group.runs] == [1, 2]


def test_a_label_says_what_differs_between_groups(make: Make) -> None:
    pad_nas, i_supernet = make("four", seed=1), make("two", seed=1, **UNPRUNED)
    assert labels(pad_nas, i_supernet) == ["M = 4", "M = 2"]
    spos = make("spos", seed=1, extra_settings={"final_search": "spos"}, **UNPRUNED)
    assert labels(pad_nas, i_supernet, spos) == ["M = 4, ces", "M = 2, ces", "M = 2, spos"]
    demo = make("demo", seed=1, space="demo")
    assert labels(pad_nas, demo, i_supernet) == ["tiny, M = 4", "demo, M = 4", "tiny, M = 2"]


def test_other_settings_are_named_only_where_groups_would_look_alike(make: Make) -> None:
    short, long = make("short"), make("long", epochs=(6, 2, 2))
    assert labels(short, long) == ["epochs = [4, 2, 2]", "epochs = [6, 2, 2]"]
    assert labels(short, long, make("two", **UNPRUNED)) == [
        "M = 4, epochs = [4, 2, 2]",
        "M = 4, epochs = [6, 2, 2]",
        "M = 2, epochs = [8]",
    ]


def test_runs_on_two_devices_are_two_groups(make: Make) -> None:
    assert labels(make("one"), make("two", device_model="Pixel 6")) == ["Pixel 3", "Pixel 6"]


def test_no_run_or_the_same_run_twice_is_refused(make: Make) -> None:
    run = make("one")
    with pytest.raises(ValueError, match="No run to compare"):
        grouped([])
    with pytest.raises(ValueError, match="is given twice"):
        grouped([run, read_run(RunFiles(run.path / ".." / run.path.name))])
    with pytest.raises(ValueError, match=r"copy is a copy of .*one"):
        grouped([run, make("copy")])


def test_a_run_from_before_a_setting_existed_is_in_the_group_of_those_that_leave_it_out(make: Make) -> None:
    old = make("old")
    del old.final["config"]["table"]
    assert len(grouped([old, make("new", seed=2)])) == 1


def test_that_latencies_were_imported_is_said(make: Make) -> None:
    (said,) = notes(grouped([make("one", imported=True), make("two", seed=2, imported=True)]))
    assert said.startswith("Latencies were not measured but taken from a table: imported on 2026-02-03 from theirs.csv")
    assert said.count("theirs.csv") == 1


def test_what_is_not_like_with_like_is_said(make: Make) -> None:
    one = make("one")
    assert notes(grouped([one, make("two", seed=2)])) == []
    other = make("other", device_model="Pixel 6", extra_settings={"data": "cifar10"})
    other.final["latency_bounds_ms"][1] = 80.0
    accuracies, latencies, bounds = notes(grouped([one, other]))
    assert "different data (digits, cifar10)" in accuracies
    assert "different devices (Pixel 3, Pixel 6)" in latencies
    assert "up to 70.000 to 80.000 ms" in bounds


def test_the_terminal_table_leaves_out_what_no_group_has(make: Make) -> None:
    def headings(*groups: Group) -> list[str]:
        return [column.heading for column in comparison.columns(groups)]

    trained = grouped([make("trained", alone=6)])
    assert headings(*trained)[2:] == [
        "supernet %", "best found %", "best alone %", "τ", "training s", "search s", "alone s",
    ]  # fmt: skip
    untrained = grouped([make("untrained", trained=False)])
    assert headings(*untrained) == ["runs", "last space", "best found %", "search s"]


def test_deviations_are_over_seeds(make: Make) -> None:
    groups = grouped([make("one", seed=1, alone=6), make("two", seed=2, alone=6), make("three", **UNPRUNED)])
    console = Console(width=160)
    with console.capture() as capture:
        console.print(comparison.terminal_table(groups))
    several, single = (line for line in capture.get().splitlines() if "M = " in line)
    assert several.count("±") == 7
    assert "±" not in single


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({"alone": 6}, {"agreement.png", "last_layer.png", "supernet_accuracy.png"}),
        ({"trained": False}, {"last_layer.png"}),
    ],
)
def test_a_comparison_holds_what_its_runs_have(
    make: Make, tmp_path: Path, options: dict[str, Any], figures: set[str]
) -> None:
    comparison.write(tmp_path / "out", grouped([make("one", seed=1, **options), make("two", seed=2, **options)]))
    page = (tmp_path / "out" / "compare.html").read_text()
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == figures
    assert all((name in page) == (name in figures) for name in ("agreement.png", "supernet_accuracy.png"))
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    (group,) = written["groups"]
    assert [run["seed"] for run in group["runs"]] == [1, 2]
    assert group["best_accuracy"]["runs"] == 2
    assert (group["kendall_tau"] is None) == ("alone" not in options)


def test_a_group_without_training_is_compared_with_one_that_has_it(make: Make, tmp_path: Path) -> None:
    groups = grouped([make("table", trained=False), make("one", alone=6, extra_settings={"data": "cifar10"})])
    comparison.write(tmp_path / "out", groups)
    assert (tmp_path / "out" / "figures" / "supernet_accuracy.png").exists()
