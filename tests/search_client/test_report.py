import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search_client import report
from search_client.analyses import read_run
from search_client.pages import ABSENT
from search_client.run_directory import RunFiles, write_json


def latency(value: float, verdict: str = "steady") -> dict[str, Any]:
    return {"latency_ms": value, "low_ms": value * 0.99, "high_ms": value * 1.01, "verdict": verdict}


def final(*measured: dict[str, Any]) -> dict[str, Any]:
    """A `final.json` whose architectures were predicted at 1 ms and measured as given; the bounds are 0.9 to 1.1."""
    return {
        "config": {"space": "demo<script>", "data": "digits", "seed": 0},
        "device_model": "Pixel 3",
        "table": {"table_id": "a" * 64, "version": 7},
        "protocol": {
            "runtime": "litert", "runtime_version": "2.3.0", "delegate": "xnnpack", "precision": "float32",
            "threads": 1, "cores": "one_large", "stopping": {"confidence": 0.95},
        },
        "latency_bounds_ms": [0.9, 1.1],
        "stages": [{"stage": 1, "size": 8232, "evaluated": 144, "best_accuracy": 0.97}],
        "architectures": [
            {
                "name": str(number), "choices": {"block1.1": "IBConv_K3_E3"}, "predicted_latency": latency(1.0),
                "measured_latency": one, "one_shot_accuracy": 0.98, "one_shot_test_accuracy": 0.95,
                "macs": 8_080_000, "parameters": 152_000,
            }
            for number, one in enumerate(measured, start=1)
        ],
    }  # fmt: skip


def test_a_row_says_how_far_the_prediction_was_off() -> None:
    (row,) = report.rows(final(latency(0.995)))
    assert (row.predicted, row.measured, row.difference) == ("1.000 ±0.010", "0.995 ±0.010", "+0.5%")
    assert (row.macs, row.parameters, row.note) == ("8.08 M", "0.152 M", "")


def test_a_latency_out_of_bounds_is_a_miss_even_if_the_prediction_was_inside() -> None:
    inside, doubtful, missed = report.rows(final(latency(1.005), latency(1.105), latency(1.2)))
    assert (inside.within_bounds, doubtful.within_bounds, missed.within_bounds) == (True, True, False)
    assert (inside.missed, missed.missed, missed.note) == (False, True, "out of bounds, missed")


def test_a_final_is_held_to_the_target_that_it_was_chosen_for() -> None:
    """Measured well within the bounds; the first of them is meant to take 0.95 ms."""
    run = final(latency(1.0), latency(1.0), latency(0.955))
    run["config"]["latency_targets_ms"] = [0.95, 1.05]
    for architecture, name in zip(run["architectures"], ("0.95ms", "1.05ms", "0.95ms"), strict=True):
        architecture["name"] = name
    assert [row.within_bounds for row in report.rows(run)] == [False, True, True]
    assert report.rows(run)[0].note == "above its target"


def test_a_latency_outside_the_predictions_interval_is_a_miss_in_words_too() -> None:
    """The interval is whatever made the prediction; one without an interval expects everything."""
    run = final(latency(1.005), latency(1.05), latency(0.98), latency(1.05))
    run["architectures"][3]["predicted_latency"] |= {"low_ms": None, "high_ms": None}
    assert [(row.missed, row.note) for row in report.rows(run)] == [
        (False, ""),
        (True, "missed"),
        (True, "missed"),
        (False, ""),
    ]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.terminal_table(run))
    assert "missed: measured outside the prediction's interval" in " ".join(capture.get().split())


def test_published_accuracies_are_called_so_and_have_no_second_number(make_run: Callable[..., Path]) -> None:
    run = read_run(
        RunFiles(make_run("run", trained=False, extra_settings={"data": None, "oracle": "macro:table.json"}))
    )
    for one in run.final["architectures"]:
        del one["one_shot_test_accuracy"]
        one["accuracy"] = one.pop("one_shot_accuracy")
    (row, *_) = report.rows(run.final)
    assert row.test_accuracy == ABSENT
    report.write(run)
    page = (run.path / "report.html").read_text()
    assert "macro:table.json" in page
    assert "Published accuracy against latency" in page
    assert "one-shot" not in page.lower()


def test_an_unsteady_measurement_is_said_to_be_one() -> None:
    (row,) = report.rows(final(latency(1.3, "unsteady")))
    assert row.note == "unsteady, out of bounds, missed"


def test_what_was_not_measured_is_said_and_not_made_up(make_run: Callable[..., Path]) -> None:
    run = read_run(RunFiles(make_run("run", imported=True)))
    for row in report.rows(run.final):
        assert (row.measured, row.difference, row.note, row.within_bounds) == (ABSENT, ABSENT, "not measured", True)
        assert "±" not in row.predicted
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.terminal_table(run.final))
    assert "latencies imported, nothing measured" in capture.get()
    report.write(run)
    page = (run.path / "report.html").read_text()
    assert "no network was measured" in page
    assert "imported on 2026-02-03 from theirs.csv" in page
    assert "by its &lt;b&gt;authors" in page
    assert "Measured is the" not in page
    assert "its interval is" not in page


def test_the_terminal_table_fits_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.terminal_table(final(latency(1.05), latency(1.2))))
    text = capture.get()
    assert "…" not in text
    assert "1.200 ±0.012" in text


def test_the_page_flags_a_miss_and_escapes_what_it_is_given(make_run: Callable[..., Path]) -> None:
    run = read_run(RunFiles(make_run("run", device_model="Pixel<script>", finals=2)))
    for one, value in zip(run.final["architectures"], (60.0, 75.0), strict=True):
        one["measured_latency"] = latency(value)
        one["predicted_latency"] = latency(60.0)
    report.write(run)
    page = (run.path / "report.html").read_text()
    assert page.count('<tr class="missed">') == 1
    assert "measured outside the prediction's interval" in page
    assert "Pixel&lt;script&gt;" in page
    assert "Pixel<script>" not in page


def test_a_report_of_one_training_names_the_copy_that_there_is(make_run: Callable[..., Path]) -> None:
    run = read_run(RunFiles(make_run("refined", refine=4, stages=2)))
    assert report.facts(run)["latency table"].endswith("in table.json")


def test_a_report_names_the_copy_of_the_last_table(make_run: Callable[..., Path]) -> None:
    for name, refine, copy in (("plain", 0, "in table.json"), ("refined", 4, "in stage-3/table.json")):
        assert report.facts(read_run(RunFiles(make_run(name, refine=refine))))["latency table"].endswith(copy)


def test_a_report_says_on_top_what_was_searched(make_run: Callable[..., Path]) -> None:
    run = read_run(RunFiles(make_run("run", seed=5, epochs=(40, 2, 2), alone=1)))
    facts = report.facts(run)
    assert facts["method"].startswith("M = 4, last search by ces, population 8, 2 iterations")
    assert facts["method"].endswith("seed 5")
    assert facts["latency bounds"] == "50.000 to 70.000 ms"
    assert facts["cost"] == "training 550 s, search 54 s, stand-alone training 38 s"


SECTIONS = {"Final architectures", "What was found", "Stages", "Which operators were kept", "Cost"}


@pytest.mark.parametrize(
    ("options", "sections", "pictures"),
    [
        ({"alone": 6}, SECTIONS | {"Trained alone"}, {"agreement.png", "supernet_accuracy.png"}),
        ({}, SECTIONS, {"supernet_accuracy.png"}),
        ({"trained": False}, SECTIONS, set()),
    ],
)
def test_sections_without_data_are_absent(
    make_run: Callable[..., Path], options: dict[str, Any], sections: set[str], pictures: set[str]
) -> None:
    run = read_run(RunFiles(make_run("run", **options)))
    report.write(run)
    page = (run.path / "report.html").read_text()
    assert set(re.findall("<h2>(.*)</h2>", page)) == sections
    always = {"pareto.png", "distribution.png", "architectures.png"}
    assert {path.name for path in (run.path / "figures").iterdir()} == pictures | always
    assert set(re.findall('figures/(.*?)"', page)) == pictures | always
    assert ("Kendall" in page) == ("alone" in options)


def test_a_report_is_rebuilt_from_files_as_the_search_wrote_it(make_run: Callable[..., Path]) -> None:
    """What a search has in memory when it writes its report, `final.json` is when it is read again."""
    path = make_run("run", alone=6)
    final = json.loads((path / "final.json").read_text())
    (path / "final.json").unlink()
    report.write(read_run(RunFiles(path), final))
    written = {file.name: file.read_bytes() for file in [path / "report.html", *(path / "figures").iterdir()]}
    write_json(path / "final.json", final)
    report.write(read_run(RunFiles(path)))
    assert {file.name: file.read_bytes() for file in [path / "report.html", *(path / "figures").iterdir()]} == written


@pytest.mark.parametrize("space", ["large", "mbv3", "nas-bench-macro"])
def test_every_built_in_space_can_be_drawn(make_run: Callable[..., Path], space: str) -> None:
    run = read_run(RunFiles(make_run("run", space=space, stages=2, trained=False)))
    report.write(run)
    assert (run.path / "figures" / "architectures.png").stat().st_size > 0
