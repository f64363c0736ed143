"""What a search asks of a service and of a file."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from latency_contract.operators import IBConv, Network
from latency_contract.tables import Table
from search_client.config import resolve
from search_client.errors import AnotherSearch, ProtocolChanged
from search_client.imported_tables import ImportedTable
from search_client.latencies import LatencyService
from search_client.latency_sources import MeasuredLatencies, TableFile
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunDirectory
from tests.search_client.conftest import TINY as TINY_FILE
from tests.search_client.conftest import Agent
from tests.search_client.problems import TINY
from tests.search_client.tables import imported, linear_model_of, table_of
from tests.search_client.test_latency_spread import calibrated_table


@pytest.fixture
def source(service: LatencyService, tmp_path: Path) -> MeasuredLatencies:
    directory = RunDirectory(tmp_path / "run", resolve({"space": TINY_FILE, "data": "digits"}, file=None))
    return MeasuredLatencies(service, directory, ConsoleProgress())


@pytest.fixture
def theirs(tmp_path: Path) -> ImportedTable:
    (tmp_path / "theirs.csv").write_text(f"key,latency_ms\n{TINY.stem.key},1.5\n")
    return imported(tmp_path / "theirs.csv")


def test_a_service_has_a_table_once_everything_is_measured(
    source: MeasuredLatencies, agent: Agent, operator: Callable[..., IBConv]
) -> None:
    operators = [operator(height=1), operator(height=2)]
    source.request(operators, {})
    assert source.table_if_complete(operators) is None
    agent(lambda subject: float(subject.height))
    table = source.complete_table(operators, {})
    assert {entry.latency_ms for entry in table.entries} == {1.0, 2.0}
    assert source.table_if_complete(operators) == table
    source.must_agree_with(table)


def test_what_is_measured_is_measured_again_and_the_newest_counts(
    source: MeasuredLatencies, agent: Agent, operator: Callable[..., IBConv]
) -> None:
    operators, times = [operator(height=1), operator(height=2)], Counter[int]()

    def slower_each_time(subject: IBConv) -> float:
        times[subject.height] += 1
        return float(times[subject.height])

    agent(slower_each_time)
    source.request(operators, {})
    first = source.complete_table(operators, {})
    assert isinstance(first, Table)
    source.refine(operators[:1], {})
    deadline = time.monotonic() + 60
    while (newest := source.newest_table(first, operators)) == first:
        assert time.monotonic() < deadline, "not measured again"
        time.sleep(0.02)
    assert isinstance(newest, Table)
    assert newest.version == first.version + 1
    assert [newest.by_subject[one.id].latency_ms for one in operators] == [2.0, 1.0]


def test_where_the_newest_table_lacks_something_the_last_one_stands(
    source: MeasuredLatencies, agent: Agent, operator: Callable[..., IBConv]
) -> None:
    agent(lambda _: 1.0)
    source.request([operator(height=1)], {})
    source.complete_table([operator(height=1)], {})
    last = table_of(TINY, lambda _: 1.0)
    assert source.newest_table(last, [operator(height=2)]) is last


def test_a_final_network_that_cannot_be_measured_costs_no_other(
    source: MeasuredLatencies, agent: Agent, operator: Callable[..., IBConv], capsys: pytest.CaptureFixture[str]
) -> None:
    networks = [Network(operators=(operator(height=height),)) for height in (1, 2)]
    agent(lambda subject: "no such kernel" if subject.height == 1 else 2.0)
    failed, measured = source.of_finals(networks)
    assert (failed, measured is not None and measured.latency_ms) == (None, 2.0)
    assert f"{networks[0].key} cannot be measured: no such kernel" in capsys.readouterr().err


def test_a_file_goes_on_whatever_a_search_has_kept_of_its_calibrations() -> None:
    table = calibrated_table(0.0)
    TableFile(table).must_agree_with(table.with_calibrations(()))


def test_a_search_that_began_with_another_table_does_not_measure_its_finals(
    source: MeasuredLatencies, theirs: ImportedTable
) -> None:
    with pytest.raises(ProtocolChanged, match=r"began with an imported table of Pixel 1 .*Go on with --table"):
        source.must_agree_with(theirs)
    with pytest.raises(ProtocolChanged, match="began with latencies of Pixel 3 under litert"):
        source.must_agree_with(table_of(TINY, lambda _: 1.0))


def test_a_file_is_complete_and_measures_nothing(theirs: ImportedTable) -> None:
    source = TableFile(theirs)
    source.request(TINY.operators(), {})
    source.release(TINY.operators())
    assert source.table_if_complete(TINY.operators()) is source.complete_table(TINY.operators(), {}) is theirs
    network = TINY.network(("IBConv_K3_E1", "IBConv_K3_E1", "Identity", "Identity"))
    assert source.of_finals([network, network]) == [None, None]


def test_a_file_goes_on_with_what_it_said_before_whenever_it_was_imported(theirs: ImportedTable) -> None:
    document = json.loads(theirs.model_dump_json())
    document["source"]["imported_at"] = "2027-01-01T00:00:00Z"
    TableFile(theirs).must_agree_with(ImportedTable.model_validate(document))
    document["entries"][0] |= {"latency_ms": 2.0, "source": [{"key": TINY.stem.key, "latency_ms": 2.0}]}
    for other in (
        ImportedTable.model_validate(document),
        table_of(TINY, lambda _: 1.0),
        linear_model_of(TINY, lambda index, _: index),
    ):
        with pytest.raises(AnotherSearch, match="the file of --table holds another one"):
            TableFile(theirs).must_agree_with(other)
