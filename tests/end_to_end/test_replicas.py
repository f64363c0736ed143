"""Two replicas of the service on one PostgreSQL, as processes of their own; one is killed, and PostgreSQL restarted."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from benchmarks.postgresql import running_server
from benchmarks.processes import running_service, start_agent
from latency_contract.connection import ServiceConnection
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import MeasurementRow, ModelRow
from search_client.cli import app
from search_client.latencies import LatencyService
from search_client.spaces import load_space

pytestmark = pytest.mark.usefixtures("this_machine")

SMALLEST = Path(__file__).parent / "smallest.toml"
PATIENCE_S = 60.0


def test_a_table_survives_a_killed_replica_and_a_restarted_postgresql(tmp_path: Path) -> None:
    """Asked for at one replica, converted by both, measured by an agent of the other one, each operator once."""
    operators = list(dict.fromkeys(load_space(str(SMALLEST), classes=10).operators()))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        running_server() as server,
        server.database(template="template1") as database_url,
        running_service(tmp_path / "a", database_url=database_url) as (first, first_url),
        running_service(tmp_path / "b", database_url=database_url) as (_, second_url),
        start_agent(tmp_path, second_url) as agent,
    ):
        agent.wait_for_line(r"(measuring on .*)")
        with ServiceConnection(first_url) as connection:
            LatencyService(connection, device=None, client="test").request(operators, purpose=Purpose.TABLE)
        agent.wait_for_line(r"(leased \d+ jobs)")
        first.kill()

        server.stop()
        away = httpx.get(f"{second_url}/readyz")
        assert (away.status_code, away.json()["error"]) == (503, "DatabaseUnavailable")
        assert httpx.get(f"{second_url}/healthz").status_code == 200
        server.start()
        until(lambda: httpx.get(f"{second_url}/readyz").status_code == 200)

        built = CliRunner().invoke(app, ["table", "build", "--service", second_url, "--space", str(SMALLEST)])
        assert built.exit_code == 0, built.stderr
        database = Database(database_url)
        with database.reading() as session:
            conversions = session.scalars(select(ModelRow.attempts)).all()
            times_measured = session.execute(
                select(MeasurementRow.subject_id, func.count().label("times")).group_by(MeasurementRow.subject_id)
            ).all()
        database.dispose()
    assert {row.subject_id: row.times for row in times_measured} == {operator.id: 1 for operator in operators}
    # Two converters may have been interrupted in what they were at; everything else was converted once.
    assert sorted(conversions)[:-2] == [1] * (len(operators) + 1 - 2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
