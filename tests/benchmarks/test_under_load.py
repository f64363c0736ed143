"""What the figures of a load say."""

from datetime import UTC, datetime

import pytest

from benchmarks.under_load import judged
from latency_contract.measurements import Verdict
from latency_contract.tables import Latency


def latency(ms: float, verdict: Verdict = Verdict.STEADY) -> Latency:
    return Latency(
        measurement_id=1, latency_ms=ms, low_ms=ms, high_ms=ms, confidence=0.95, verdict=verdict, rounds=6,
        device_serial="A1", measured_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def test_a_steady_number_that_a_load_has_made_larger_is_found() -> None:
    unsteady = Verdict.UNSTEADY
    tables = {
        "idle": [[latency(1.0), latency(2.0)], [latency(1.0), latency(2.0)]],
        "other_core": [[latency(1.01), latency(2.2)], [latency(1.0), latency(3.0, unsteady)]],
        "same_core": [[latency(1.5, unsteady), latency(2.0, unsteady)]] * 2,
    }
    figures, targets = judged(tables, {"idle": [10.0, 20.0], "other_core": [20.0, 20.0], "same_core": [40.0, 60.0]})
    values = {name: figure.value for name, figure in figures.items()}
    assert values["steady_share_other_core"] == 0.75
    assert values["steady_off_share_other_core"] == pytest.approx(1 / 3)
    assert values["steady_worst_pct_other_core"] == pytest.approx(5.0)  # of 10 % and 0 %
    assert values["worst_pct_other_core"] == pytest.approx(30.0)
    assert values["wall_ratio_same_core"] == 3.5
    assert values["steady_share_same_core"] == 0.0
    assert "steady_off_share_same_core" not in figures, "there is no case"
    assert not targets["steady_off_share_other_core"].met(figures["steady_off_share_other_core"])
