"""Two tables operator by operator; what is compared, and what is said of it."""

import math
from pathlib import Path

import numpy as np
import pytest

from latency_contract.comparisons import FALSE_DISCOVERIES
from latency_contract.operators import IBConv
from latency_contract.tables import Table
from search_client.table_comparison import compare, differences
from tests.search_client.problems import BASIC, TINY
from tests.search_client.tables import imported, linear_model_of, table_of


def test_a_ratio_of_equal_tables_is_one_and_not_significant() -> None:
    table = table_of(TINY, lambda operator: float(operator.kernel))
    found = compare(table, table)
    assert {one.ratio.value for one in found.operators} == {1.0}
    assert {one.adjusted_p for one in found.operators} == {1.0}
    assert found.significant == ()
    assert found.median_ratio == 1.0
    assert found.rank_correlations is not None
    assert found.rank_correlations == pytest.approx((1.0, 1.0))
    assert differences(table, table) == {}


def test_without_an_interval_there_is_a_ratio_and_no_significance(tmp_path: Path) -> None:
    lines = [f"{operator.key},{3.0}" for operator in TINY.operators()]
    (tmp_path / "t.csv").write_text("key,latency_ms\n" + "\n".join(lines))
    found = compare(table_of(TINY, lambda _: 1.5), imported(tmp_path / "t.csv"))
    assert found.tested == 0
    assert found.significant == ()
    assert {one.ratio for one in found.operators} == {(2.0, None, None, None), (3.0, None, None, None)}


def test_significance_is_corrected_for_how_many_operators_there_are() -> None:
    """Benjamini and Hochberg by their own words: the largest k with p(k) <= k / n of the rate, and all up to it."""
    rng = np.random.default_rng(1)
    other = {operator: float(np.exp(rng.normal(0, 0.08))) for operator in BASIC.operators()}
    for operator in BASIC.operators()[:20]:
        other[operator] = 1.3
    found = compare(table_of(BASIC, lambda _: 1.0), table_of(BASIC, lambda operator: other[operator]))
    p_values = sorted(one.ratio.p_value or 0.0 for one in found.operators)
    least = [p for place, p in enumerate(p_values, start=1) if p <= place / len(p_values) * FALSE_DISCOVERIES]
    assert 0 < len(found.significant) < found.tested
    assert {one.key for one in found.significant} == {
        one.key for one in found.operators if (one.ratio.p_value or 0.0) <= max(least)
    }
    alone = sum((one.ratio.p_value or 0.0) <= 0.05 for one in found.operators)
    assert len(found.significant) < alone


def test_what_differs_most_comes_first_whatever_the_direction() -> None:
    def twice(operator: IBConv) -> float:
        return {1: 1.0, 2: 3.0}[operator.expansion] if operator.kernel == 3 else 0.2

    found = compare(table_of(TINY, lambda _: 1.0), table_of(TINY, twice))
    distances = [abs(math.log(one.ratio.value)) for one in found.operators]
    assert distances == sorted(distances, reverse=True)
    assert found.operators[0].ratio.value == pytest.approx(0.2)


def test_operators_of_one_table_alone_are_listed() -> None:
    table = table_of(TINY, lambda _: 1.0)
    first, last = (table.model_copy(update={"entries": entries}) for entries in (table.entries[:-1], table.entries[1:]))
    found = compare(first, last)
    assert found.only_first == (table.entries[0].key,)
    assert found.only_second == (table.entries[-1].key,)
    assert len(found.operators) == len(table.entries) - 2


def test_tables_with_nothing_in_common_have_no_summary() -> None:
    table = table_of(TINY, lambda _: 1.0)
    found = compare(
        table.model_copy(update={"entries": table.entries[:1]}), table.model_copy(update={"entries": table.entries[1:]})
    )
    assert (found.median_ratio, found.rank_correlations) == (None, None)
    assert found.to_json()["in_both"] == 0


def test_it_is_said_in_what_the_tables_differ() -> None:
    table = table_of(TINY, lambda _: 1.0)
    protocol = table.protocol.model_dump(mode="json")
    protocol |= {"threads": 4, "stopping": protocol["stopping"] | {"target": 0.01}}
    other = Table.model_validate(
        table.model_dump(mode="json") | {"device_model": "Pixel 6", "version": 3, "protocol": protocol}
    )
    assert differences(table, other) == {
        "device": ["Pixel 3", "Pixel 6"],
        "version": ["1", "3"],
        "threads": ["1", "4"],
        "stopping.target": ["0.02", "0.01"],
    }


def test_of_an_imported_table_the_source_is_said_and_no_protocol(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"key,latency_ms\n{TINY.stem.key},3.0\n")
    said = differences(table_of(TINY, lambda _: 1.0), imported(tmp_path / "t.csv"))
    assert said["runtime"] == ["litert", "not known"]
    assert said["source"][0] == "not known"
    assert "t.csv" in said["source"][1]


def test_a_linear_model_is_refused() -> None:
    with pytest.raises(ValueError, match="is a linear model"):
        compare(table_of(TINY, lambda _: 1.0), linear_model_of(TINY, lambda index, _: index))


def test_two_tables_of_a_pixel_1_are_compared(shared_data: Path) -> None:
    """With itself in another unit of time: everything differs, and nothing changes places."""
    table = imported(shared_data / "proxylessnas_pixel1_mobile_trim.csv")
    other = table.model_copy(
        update={
            "entries": tuple(
                entry.model_copy(
                    update={
                        "latency_ms": 1.2 * entry.latency_ms,
                        "interval": entry.interval
                        and entry.interval.model_copy(
                            update={"low_ms": 1.2 * entry.interval.low_ms, "high_ms": 1.2 * entry.interval.high_ms}
                        ),
                    }
                )
                for entry in table.entries
            )
        }
    )
    found = compare(table, other)
    assert found.median_ratio == pytest.approx(1.2)
    assert found.rank_correlations is not None
    assert found.rank_correlations == pytest.approx((1.0, 1.0))
    assert len(found.significant) == 72
