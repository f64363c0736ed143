"""What pages read: so many queries, whatever there is; and pages of what is long."""

from collections.abc import Callable

import pytest

from latency_contract.operators import IBConv
from latency_service import dashboard
from latency_service.dashboard import page_of
from latency_service.database import Database
from latency_service.settings import Settings
from tests.conftest import Clock
from tests.latency_service.shown_farm import PROTOCOL, fill, unit
from tests.latency_service.test_overview import statements

Make = Callable[..., IBConv]


def front(database: Database, clock: Clock, *, page: int = 1) -> dashboard.Front:
    with database.reading() as session:
        return dashboard.front(session, database="x", settings=Settings(), page=page, now=clock())


def test_the_front_page_costs_as_many_queries_for_a_thousand_units_as_for_none(
    database: Database, clock: Clock, operator: Make
) -> None:
    with statements(database) as for_nothing:
        front(database, clock)
    fill(database, [operator(height=h) for h in range(1, 13)], now=clock())
    with database.writing() as session:
        for n in range(1000):
            unit(session, f"U{n}", model=f"Model {n % 7}", now=clock())
    with statements(database) as for_much:
        shown = front(database, clock)
    assert len(for_nothing) == len(for_much) <= 13
    assert not any("measurements.document" in statement for statement in for_much)
    assert (len(shown.units.items), shown.units.last) == (dashboard.UNITS, 41)
    serials = [u.device.serial for u in shown.units.items[:3]]
    assert serials == ["1B071FDF9", "1C091FDF2", "8AZX0R5T9"], "who is not well comes first"
    assert (shown.waiting, shown.leased) == (13, 4)
    (work,) = shown.at_work
    assert (work.serial, work.jobs) == ("89AX0KCQ1", 4)


def test_a_table_and_a_comparison_cost_few_queries_and_read_no_document_of_a_measurement(
    database: Database, clock: Clock, operator: Make
) -> None:
    fill(database, [operator(height=h) for h in range(1, 101)], now=clock())
    with database.reading() as session:
        first, second = dashboard.comparable(session)
        with statements(database) as sent:
            table = dashboard.table(session, first.table_id, version=None, page=2)
            compared = dashboard.comparison(session, first.table_id, second.table_id, page=9)
    assert len(sent) <= 10
    assert not any("measurements.document" in statement for statement in sent)
    assert (table.lines.number, table.lines.last, len(table.lines.items)) == (2, 3, 40)
    assert (compared.operators.number, compared.operators.total) == (2, 100)
    assert compared.median_ratio != 1


def test_a_model_shows_who_is_odd_first(database: Database, clock: Clock, operator: Make) -> None:
    fill(database, [operator(height=h) for h in range(1, 31)], now=clock())
    with database.reading() as session:
        shown = dashboard.device_model(session, "pixel 3", settings=Settings(), page=1, now=clock())
    assert (shown.compared.items[0].serial, shown.compared.items[0].odd) == ("8BTY0MZ77", True)
    assert shown.comparison.protocol_id == PROTOCOL.id
    assert len(shown.units.items) == 4


@pytest.mark.parametrize(
    ("items", "number", "expected"),
    [(0, 1, ([], 1, 1)), (5, 1, ([0, 1], 1, 3)), (5, 3, ([4], 3, 3)), (5, 99, ([4], 3, 3)), (4, 2, ([2, 3], 2, 2))],
)
def test_a_page_beyond_the_last_is_the_last(items: int, number: int, expected: tuple[list[int], int, int]) -> None:
    page = page_of(range(items), number, size=2)
    assert (list(page.items), page.number, page.last) == expected
