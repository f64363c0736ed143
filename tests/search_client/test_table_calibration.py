"""Which networks calibrate a table; the command, against a live service with an agent whose answers are made up."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner, Result

from latency_contract.calibrations import Calibration, Terms
from latency_contract.connection import ServiceConnection
from latency_contract.jobs import LeasedJob, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import Network
from latency_contract.predictions import add_up
from latency_contract.tables import Table
from search_client.cli import app
from search_client.imported_tables import read_table
from search_client.spaces import load_space
from search_client.table_calibration import shift, stratified_networks
from tests.agents import answer_lease
from tests.latency_contract.made_calibrations import calibration_of
from tests.search_client.problems import BASIC
from tests.search_client.tables import table_of

TINY = str(Path(__file__).parent / "tiny.toml")
NETWORKS = 10


def client(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


class Weather:
    """What all networks take longer by; operators do not feel it."""

    factor = 1.0


@pytest.fixture
def agent(service_url: str, phone: str, measurement: Callable[..., Measurement]) -> Iterator[Weather]:
    """Measures whatever there is: half a millisecond, and one for a million multiply-accumulates."""
    over, weather = threading.Event(), Weather()

    def answer(job: LeasedJob) -> Measured:
        ms = 0.5 + getattr(job.subject, "macs", 0) / 1e6
        if isinstance(job.subject, Network):
            ms *= weather.factor
        medians = [ms * (1 + n / 10_000) for n in range(6)]
        made = measurement(job.subject.id, medians, model_sha256=job.model_sha256, serial=phone)
        return Measured(job_id=job.job_id, measurement=made)

    def serve() -> None:
        with ServiceConnection(service_url) as connection:
            while not over.wait(0.02):
                answer_lease(connection, phone, answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield weather
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


def test_networks_measured_again_say_whether_the_calibration_holds(
    service_url: str, phone: str, agent: Weather
) -> None:
    where = ["--service", service_url, "--device", phone, "--space", TINY]
    assert client("table", "build", *where).exit_code == 0
    without = client("table", "check", *where)
    assert (without.exit_code, "Make one: padnas-client table calibrate --space" in without.stderr) == (1, True)
    made = client("table", "calibrate", *where, "--networks", str(NETWORKS), "--json")
    calibration = Calibration.model_validate_json(made.stdout)
    assert [one.network.id for one in calibration.networks] == [one.subject_id for one in calibration.networks]
    holds = client("table", "check", *where)
    assert holds.exit_code == 0, holds.stderr
    assert "its networks take +0.00 %" in holds.stdout
    assert "the calibration holds" in holds.stdout
    agent.factor = 1.05
    left = client("table", "check", *where, "--networks", "4", "--json")
    assert left.exit_code == 3
    found = json.loads(left.stdout)
    assert (found["holds"], len(found["networks"])) == (False, 4)
    assert found["longer_pct"] == pytest.approx(5.0)
    assert found["low_pct"] <= found["longer_pct"] <= found["high_pct"]
    ordered = [one["then_ms"] for one in found["networks"]]
    assert (ordered[0], ordered[-1]) == (
        min(one.latency_ms for one in calibration.networks),
        max(one.latency_ms for one in calibration.networks),
    )
    again = client("table", "check", *where)
    assert (again.exit_code, "does not hold now. Measure when the device is as it was" in again.stdout) == (3, True)
    anew = client("table", "calibrate", *where, "--networks", str(NETWORKS), "--json")
    assert "some networks were measured again since; all are" in anew.stderr
    made_anew = Calibration.model_validate_json(anew.stdout)
    for one, before in zip(made_anew.networks, calibration.networks, strict=True):
        assert one.latency_ms == pytest.approx(1.05 * before.latency_ms)
    assert client("table", "check", *where).exit_code == 0


def test_the_interval_of_a_shift_holds_it_as_often_as_it_says() -> None:
    """Eight networks that take 3 % longer, each known within a percent; 600 times."""
    rng = np.random.default_rng(0)
    terms = [Terms(float(ms), 15, 3.0) for ms in np.linspace(15, 30, 12)]
    made = calibration_of(terms, [one.sum_ms + 0.5 for one in terms], measurements={"0" * 64: 1})
    inside = 0
    for _ in range(600):
        pairs = [(20.0, 20.0 * 1.03 * math.exp(0.01 * rng.standard_normal())) for _ in range(8)]
        found = shift(made, pairs)
        inside += found.low_pct <= 3.0 <= found.high_pct
    assert stats.binomtest(inside, 600, 0.95).pvalue > 0.01
