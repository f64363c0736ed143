import io
from pathlib import Path
from typing import Any

from rich.console import Console

from search_client import report


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
        "stages": [{"stage": 1, "size": 8232, "evaluated": 144, "best_one_shot_accuracy": 0.97}],
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
    (row,) = report.rows(final(latency(0.98)))
    assert (row.predicted, row.measured, row.difference) == ("1.000 ±0.010", "0.980 ±0.010", "+2.0%")
    assert (row.macs, row.parameters, row.note) == ("8.08 M", "0.152 M", "")


def test_a_latency_out_of_bounds_is_a_miss_even_if_the_prediction_was_inside() -> None:
    inside, doubtful, missed = report.rows(final(latency(1.05), latency(1.105), latency(1.2)))
    assert (inside.within_bounds, doubtful.within_bounds, missed.within_bounds) == (True, True, False)
    assert missed.note == "out of bounds"


def test_published_accuracies_have_no_second_number_on_test_images(tmp_path: Path) -> None:
    published = final(latency(1.0))
    (architecture,) = published["architectures"]
    for key in ("one_shot_accuracy", "one_shot_test_accuracy"):
        del architecture[key]
    architecture["accuracy"] = 0.931
    published["stages"] = [{"stage": 1, "size": 6561, "evaluated": 64, "best_accuracy": 0.931}]
    published["config"] |= {"data": None, "oracle": "nas-bench-macro:table.json"}
    (row,) = report.rows(published)
    assert (row.accuracy, row.test_accuracy) == ("93.1%", "")
    report.write(tmp_path / "report.html", published)
    page = (tmp_path / "report.html").read_text()
    assert "nas-bench-macro:table.json" in page
    assert "one-shot" not in page.lower()


def test_an_unsteady_measurement_is_said_to_be_one() -> None:
    (row,) = report.rows(final(latency(1.3, "unsteady")))
    assert row.note == "unsteady, out of bounds"


def test_the_terminal_table_fits_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.terminal_table(final(latency(1.05), latency(1.2))))
    text = capture.get()
    assert "…" not in text
    assert "1.200 ±0.012" in text


def test_the_page_flags_a_miss_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    report.write(tmp_path / "report.html", final(latency(1.05), latency(1.2)))
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="missed"') == 1
    assert "demo&lt;script&gt;" in page
    assert "demo<script>" not in page
    assert 'src="figures/pareto.png"' in page
