from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from latency_contract.measurements import Verdict
from latency_contract.operators import Conv, Head, IBConv
from latency_contract.tables import TableEntry
from latency_service.heat_map import BANDS, heat_map
from tests.conftest import START

Make = Callable[..., IBConv]
numbers = count(1)


def entry(operator: Conv | IBConv | Head, latency_ms: float) -> TableEntry:
    return TableEntry(
        measurement_id=next(numbers), latency_ms=latency_ms, low_ms=0.98 * latency_ms, high_ms=1.02 * latency_ms,
        confidence=0.95, verdict=Verdict.STEADY, rounds=6, device_serial="A1", measured_at=START, key=operator.key,
        subject_id=operator.id, operator=operator,
    )  # fmt: skip


def test_operators_that_can_replace_each_other_share_a_line(operator: Make) -> None:
    small, large = operator(kernel=3), operator(kernel=5)
    drawn = heat_map([entry(small, 1.0), entry(large, 2.0), entry(operator(height=4, width=4), 1.5)])
    assert drawn.columns == ("K3 E3", "K5 E3")
    assert [line.layer for line in drawn.lines] == ["8×8, 8→8", "4×4, 8→8"], "from input to output"
    shown = [[cell and cell.entry.latency_ms for cell in line.cells] for line in drawn.lines]
    assert shown == [[1.0, 2.0], [1.5, None]]


@pytest.mark.parametrize(
    "change", [{"stride": 2}, {"residual": True}, {"out_channels": 16}, {"activation": "hswish"}, {"width": 4}]
)
def test_operators_that_cannot_replace_each_other_have_lines_of_their_own(
    operator: Make, change: dict[str, Any]
) -> None:
    drawn = heat_map([entry(operator(), 1.0), entry(operator(**change), 1.0)])
    assert len(drawn.lines) == 2
    assert len({line.layer for line in drawn.lines}) == 2, "and can be told apart"


def test_squeeze_and_excitation_is_a_choice(operator: Make) -> None:
    drawn = heat_map([entry(operator(), 1.0), entry(operator(squeeze_excite=True), 1.0)])
    assert drawn.columns == ("K3 E3", "K3 E3 SE")


def test_bands_are_of_equal_ratio_from_the_fastest_to_the_slowest(operator: Make) -> None:
    latencies_ms = [1.0, *(2.0 ** (n + 0.5) for n in range(1, BANDS - 1)), 2.0**BANDS]
    drawn = heat_map([entry(operator(height=n), ms) for n, ms in enumerate(latencies_ms, start=1)])
    bands = sorted(cell.band for line in drawn.lines for cell in line.cells if cell)
    assert bands == list(range(BANDS))
    assert [drawn.limit_ms(band) for band in range(BANDS + 1)] == pytest.approx([2.0**n for n in range(BANDS + 1)])


def test_a_single_latency_has_one_band(operator: Make) -> None:
    drawn = heat_map([entry(operator(), 1.0)])
    (cell,) = drawn.lines[0].cells
    assert cell is not None
    assert cell.band == 0
    assert cell.half_width_pct == pytest.approx(2.0)


def test_stems_and_heads_are_beside_the_map() -> None:
    stem = Conv(height=32, width=32, in_channels=3, out_channels=16, kernel=3, stride=2)
    head = Head(height=4, width=4, in_channels=16, hidden_channels=64, out_channels=10)
    drawn = heat_map([entry(head, 1.0), entry(stem, 2.0)])
    assert [name for name, _ in drawn.ends] == ["Conv K3 32×32, 3→16, stride 2", "Head 4×4, 16→64→10"]
    assert (drawn.lines, drawn.columns) == ((), ())


def test_nothing_has_no_map() -> None:
    with pytest.raises(ValueError, match="without entries"):
        heat_map([])
