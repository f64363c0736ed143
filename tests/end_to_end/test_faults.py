"""kill -9 of service and agent in the middle of a table, and the end of a service that has an agent of its own."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from benchmarks.processes import Program, running_service, start_agent
from latency_contract.connection import ServiceConnection
from latency_contract.operators import parse_key
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import MeasurementRow
from search_client.latencies import LatencyService
from search_client.spaces import load_space

pytestmark = pytest.mark.usefixtures("this_machine")

SMALLEST = Path(__file__).parent / "smallest.toml"


def test_a_search_survives_a_killed_agent_and_a_killed_service(tmp_path: Path) -> None:
    """Both come back, and every operator is measured exactly once."""
    command = ["search", "--space", str(SMALLEST), "--data", "digits", "--out", str(tmp_path / "run"), "--wait"]
    with running_service(tmp_path) as (service, url):
        searching = Program("search_client", *command, "--service", url, log=tmp_path / "client.log")
        with searching, start_agent(tmp_path, url) as agent:
            agent.wait_for_line(r"(leased \d+ jobs)")
            agent.kill()
            service.kill()
            with (
                running_service(tmp_path, port=int(url.rpartition(":")[2])),
                start_agent(tmp_path, url) as agent,
            ):
                assert searching.process.wait(150) == 0, searching.log.read_text()
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    expected = {operator.key for operator in load_space(str(SMALLEST), classes=10).operators()}
    assert {entry["key"] for entry in table["entries"]} == expected
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    with database.reading() as session:
        times_measured = Counter(session.scalars(select(MeasurementRow.subject_id)))
    database.dispose()
    assert set(times_measured.values()) == {1}
    assert {entry["subject_id"] for entry in table["entries"]} <= set(times_measured)


def test_a_killed_service_takes_its_agent_with_it(tmp_path: Path) -> None:
    """An agent left behind would keep the machine for itself and ask at an address where nobody is."""
    with running_service(tmp_path, "--with-local-agent") as (service, _):
        service.wait_for_line(r"(measuring on .*)")
        (agent,) = [p for p in psutil.Process(service.process.pid).children() if "device_agents" in p.cmdline()]
        service.kill()
        agent.wait(60)


def test_stopping_the_service_stops_its_agent_while_it_can_give_its_lease_back(tmp_path: Path) -> None:
    with running_service(tmp_path, "--with-local-agent") as (service, url):
        service.wait_for_line(r"(measuring on .*)")
        with ServiceConnection(url) as connection:
            latencies = LatencyService(connection, device=None, client="test")
            slow = parse_key("IBConv_K7_E6_H112_W112_I96_O96_S1_relu6")  # takes the agent seconds
            latencies.request([slow], purpose=Purpose.TABLE)
        service.wait_for_line(r"(leased \d+ jobs)")
        (agent,) = [p for p in psutil.Process(service.process.pid).children() if "device_agents" in p.cmdline()]
        assert service.stop() == 0
    assert "giving the lease back" in service.log.read_text()
    assert "could not be given back" not in service.log.read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(agent.pid, signal.SIGCONT)
