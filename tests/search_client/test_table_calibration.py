"""Which networks calibrate a table; the command, against a live service with an agent whose answers are made up."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from latency_contract.calibrations import Calibration
from latency_contract.connection import ServiceConnection
from latency_contract.jobs import LeasedJob, Measured
from latency_contract.measurements import Measurement
from latency_contract.predictions import add_up
from latency_contract.tables import Table
from search_client.cli import app
from search_client.imported_tables import read_table
from search_client.spaces import load_space
from search_client.table_calibration import stratified_networks
from tests.agents import answer_lease
from tests.latency_contract.made_calibrations import calibration_of
from tests.search_client.problems import BASIC
from tests.search_client.tables import table_of

TINY = str(Path(__file__).parent / "tiny.toml")
NETWORKS = 10


def client(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def agent(service_url: str, phone: str, measurement: Callable[..., Measurement]) -> Iterator[None]:
    """Measures whatever there is: half a millisecond, and one for a million multiply-accumulates."""
    over = threading.Event()

    def answer(job: LeasedJob) -> Measured:
        ms = 0.5 + getattr(job.subject, "macs", 0) / 1e6
        medians = [ms * (1 + n / 10_000) for n in range(6)]
        made = measurement(job.subject.id, medians, model_sha256=job.model_sha256, serial=phone)
        return Measured(job_id=job.job_id, measurement=made)

    def serve() -> None:
        with ServiceConnection(service_url) as connection:
            while not over.wait(0.02):
                answer_lease(connection, phone, answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    over.set()
    thread.join()


def test_networks_are_spread_evenly_over_what_random_ones_take() -> None:
    table = table_of(BASIC, lambda operator: operator.macs / 1e6)
    networks = stratified_networks(BASIC, table, count=40, rng=np.random.default_rng(0))
    assert len({network.id for network in networks}) == 40
    sums_ms = np.array([add_up(network.operators, table.by_subject).terms.sum_ms for network in networks])
    thirds = np.histogram(sums_ms, bins=3)[0]
    assert thirds.min() >= 11  # of uniform draws, two or three in forty are in each outer third
    again = stratified_networks(BASIC, table, count=40, rng=np.random.default_rng(0))
    assert [network.id for network in again] == [network.id for network in networks]


def test_a_calibration_does_not_change_which_networks_are_drawn() -> None:
    table = table_of(BASIC, lambda operator: operator.macs / 1e6)
    networks = stratified_networks(BASIC, table, count=12, rng=np.random.default_rng(0))
    terms = [add_up(network.operators, table.by_subject).terms for network in networks]
    measurements = {entry.subject_id: entry.measurement_id for entry in table.entries}
    latencies_ms = [2 * one.sum_ms + one.operators for one in terms]
    calibrated = table.with_calibrations([calibration_of(terms, latencies_ms, measurements=measurements)])
    again = stratified_networks(BASIC, calibrated, count=12, rng=np.random.default_rng(0))
    assert [network.id for network in again] == [network.id for network in networks]


def test_a_space_with_too_few_networks_says_so() -> None:
    space = load_space(TINY)
    least = space.restricted([layer.choices[:1] for layer in space.layers])
    with pytest.raises(ValueError, match="has only 1 networks to calibrate with"):
        stratified_networks(least, table_of(least, lambda _: 1.0), count=10, rng=np.random.default_rng(0))


@pytest.mark.usefixtures("agent")
def test_a_table_is_built_calibrated_shown_exported_and_predicts(service_url: str, phone: str, tmp_path: Path) -> None:
    where = ["--service", service_url, "--device", phone]
    done = client("table", "calibrate", *where, "--space", TINY, "--networks", str(NETWORKS))
    assert done.exit_code == 0, done.stderr
    assert f"with {NETWORKS} networks of 'tiny'" in done.stdout
    again = client("table", "calibrate", *where, "--space", TINY, "--networks", str(NETWORKS), "--json")
    made = Calibration.model_validate_json(again.stdout)
    assert len(made.networks) == NETWORKS

    assert made.sentence in client("table", "show", *where).stdout
    exported = client("table", "export", *where, "--out", str(tmp_path / "table.json"))
    assert exported.exit_code == 0, exported.stderr
    table = read_table(tmp_path / "table.json")
    assert isinstance(table, Table)
    assert table.calibrations == (made,)

    choices = ["--space", TINY, "--choices", "IBConv_K3_E1,IBConv_K3_E1,Identity,Identity"]
    by_service = client("predict", *where, *choices, "--json")
    by_file = client("predict", "--table", str(tmp_path / "table.json"), *choices, "--json")
    assert by_service.exit_code == 0, by_service.stderr
    assert json.loads(by_service.stdout) == json.loads(by_file.stdout)
    assert json.loads(by_file.stdout)["calibrated"] is True
    assert "calibrated on" in client("predict", *where, *choices).stdout
