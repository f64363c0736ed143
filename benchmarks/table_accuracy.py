"""How true is a calibrated table? Random networks that the calibration has not seen, predicted and measured.

For each space: its operators are measured, then the networks of `table calibrate`, then the usual table for as long a
time on the device, then random networks, and in the end some operators again, an hour after the first time. Everything
is converted before the device measures, so that nothing else runs meanwhile; and leases are as large as they may be, so
that the weather of this machine falls on many subjects alike. The work lies in a folder, and the same command goes on
with it:

    python -m benchmarks.table_accuracy --folder runs/accuracy --space basic --minutes 8
    python -m benchmarks.table_accuracy --folder runs/accuracy --space large --minutes 8

Each call works for so long and says what is left; the one that ends a space writes its results, beside those of the
other space, which may be of another day (`measured_on` in the results).
The usual table is made in one piece, however long that takes.
`python -m benchmarks table_accuracy` does all of it at once. Figures, `_large` for the large space:

    mape_pct, worst_pct, bias_pct   error of the predicted latency, in percent of what was measured
    within_3pct_share (5, 10)       networks that are predicted so well
    kendall_tau                     rank correlation of predicted and measured
    coverage_share                  measured latencies inside the 95 % interval of their prediction
    coverage_off_share              how far that is from 0.95
    table_s                         the device at work for table and calibration
    halves_difference_pct           how far the tested networks' numbers by half of their rounds are from those by the
                                    other half, mean: how well they are known that predictions are judged by
    repeat_within_interval_share    operators measured again an hour later that lie in the interval of the first time
    repeat_difference_pct           how far the second time is from the first, median
    usual_mape_pct, usual_kendall_tau
                                    a plain sum over the usual table, after as long a time on the device
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sqlalchemy import func, select

from benchmarks.processes import running_service, start_agent
from benchmarks.results_file import RESULTS, Figure, Target, record
from benchmarks.usual_way import mean_latencies_ms
from latency_contract.calibrations import CalibrationRequest
from latency_contract.connection import ServiceConnection
from latency_contract.jobs import MAX_LEASED_JOBS
from latency_contract.measurements import Measurement
from latency_contract.operators import Network, Subject
from latency_contract.predictions import add_up, predicted
from latency_contract.tables import Latency, LatencyAnswer, LatencyQuery, LatencyStatus, Purpose, Table
from latency_service.database import Database
from latency_service.models import ModelRow, ModelState
from search_client.durable_files import write_text
from search_client.latencies import LatencyService, kept_measurement, known_devices
from search_client.progress import ConsoleProgress
from search_client.spaces import SearchSpace, load_space
from search_client.table_calibration import NETWORKS, stratified_networks

SPACES = ("basic", "large")
MARKS = {"basic": "", "large": "_large", "demo": ""}  # of a space's figures
TESTED = 100  # networks of each space
QUICK_SPACES, QUICK_CALIBRATED, QUICK_TESTED = ("demo",), 12, 10
TEST_SEED, CALIBRATION_SEED = 1, 0
RESAMPLES = 1000  # of the bootstrap
SETTLE_S = 5.0  # between converting and measuring
REPEATED, QUICK_REPEATED = 48, 6  # operators that are measured again
LATER_S, QUICK_LATER_S = 3600.0, 0.0

TARGETS = {
    name + mark: target
    for mark in ("", "_large")
    for name, target in {
        "mape_pct": Target("<=", 1.0),
        "within_3pct_share": Target(">=", 0.99),
        "kendall_tau": Target(">=", 0.99),
        "coverage_off_share": Target("<=", 0.02),
        "repeat_within_interval_share": Target(">=", 0.93),
    }.items()
}

Floats = NDArray[np.float64]
T = TypeVar("T")


class OutOfTime(Exception):
    """What is left is for the next call."""


class Errors(NamedTuple):
    """Of the tested networks, in their order, and of the operators that were measured again."""

    measured_ms: Floats
    predicted_ms: Floats
    usual_ms: Floats
    inside: Floats  # 1 where the measured latency is in the interval
    table_s: Floats
    halves_pct: Floats  # difference of a network's number by every other of its rounds from that by the rest
    repeated_pct: Floats  # difference of the second time from the first
    repeated_inside: Floats  # 1 where the second is in the interval of the first


def run(*, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for space in QUICK_SPACES if quick else SPACES:
            calibrated, tested = (QUICK_CALIBRATED, QUICK_TESTED) if quick else (NETWORKS, TESTED)
            Work(
                Path(folder),
                space,
                calibrated=calibrated,
                tested=tested,
                repeated=QUICK_REPEATED if quick else REPEATED,
                later_s=QUICK_LATER_S if quick else LATER_S,
                deadline=float("inf"),
            ).do()
        report(Path(folder), QUICK_SPACES if quick else SPACES, save=not quick)


def main(
    folder: Annotated[Path, typer.Option(help="where the work lies; the same one goes on")],
    space: Annotated[str, typer.Option(help="a built-in space")] = "basic",
    networks: Annotated[int, typer.Option(min=2, help="random networks to test with")] = TESTED,
    calibrated: Annotated[int, typer.Option(min=10, help="networks to calibrate with")] = NETWORKS,
    minutes: Annotated[float, typer.Option(min=0.5, help="after which this call ends")] = 8.0,
) -> None:
    """One space, as far as the time reaches."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    try:
        Work(
            folder, space, calibrated=calibrated, tested=networks, repeated=REPEATED, later_s=LATER_S, deadline=deadline
        ).do()
    except OutOfTime as left:
        typer.echo(f"{left}. Run the same command again to go on.")
        raise typer.Exit(3) from None
    done = [name for name in SPACES if (folder / f"{name}.json").exists()]
    whole = (networks, calibrated) == (TESTED, NETWORKS) and done != []
    report(folder, done or (space,), save=whole)
    if not whole:
        typer.echo("Results are written of spaces that are finished with all of their networks.")


@dataclass
class Work:
    """One space in one folder, with a service's database of its own."""

    folder: Path
    space_name: str
    calibrated: int
    tested: int
    repeated: int
    later_s: float
    deadline: float  # by time.monotonic()

    def do(self) -> None:
        """Raises OutOfTime."""
        result = self.folder / f"{self.space_name}.json"
        if result.exists():
            return
        self.home, self.space = self.folder / self.space_name, load_space(self.space_name)
        self.home.mkdir(exist_ok=True)
        self._introduce_the_device()
        judged = self.home / "judged.json"
        table = self._table()
        if not judged.exists():
            errors = self._judged(table)
            write_text(judged, json.dumps({key: value.tolist() for key, value in errors.items()}))
        errors = json.loads(judged.read_text()) | {"halves_pct": self._halves_pct(table)} | self._repeated(table)
        write_text(result, json.dumps(errors))

    def _table(self) -> Table:
        """As its operators were measured first."""
        held = self.home / "table.json"
        if not held.exists():
            self._take("operators", self.space.operators())
            write_text(held, self._with_service(lambda latencies: latencies.publish()).model_dump_json())
        return Table.model_validate_json(held.read_text())

    def _judged(self, table: Table) -> dict[str, Floats]:
        """How it predicts networks that it has not seen."""
        operators = self.space.operators()
        teachers, tested = self._networks(table)
        self._take("networks to calibrate with", teachers)
        request = CalibrationRequest(
            space=self.space.name,
            operator_ids=tuple(operator.id for operator in operators),
            network_ids=tuple(network.id for network in teachers),
        )
        calibration = self._with_service(lambda latencies: latencies.calibrate(table, request))
        typer.echo(calibration.sentence)
        table_s = self._spent_s("operators") + self._spent_s("networks to calibrate with")
        usual = self._usual(operators, seconds=table_s)
        latencies_ms = [one.latency_ms for one in self._take("networks to test with", tested)]
        return judge(table.with_calibrations([calibration]), tested, latencies_ms, usual) | {
            "table_s": np.array(table_s)
        }

    def _networks(self, table: Table) -> tuple[list[Network], list[Network]]:
        """To calibrate with, and to test with."""
        rng = np.random.default_rng(CALIBRATION_SEED)
        teachers = stratified_networks(self.space, table, count=self.calibrated, rng=rng)
        return teachers, unseen_networks(self.space, teachers, count=self.tested)

    def _halves_pct(self, table: Table) -> list[float]:
        """Of each tested network, the difference between its number by every other round and by the rest."""

        def kept(latencies: LatencyService) -> list[Measurement]:
            measured = latencies.measured(self._networks(table)[1], purpose=Purpose.TABLE, on_progress=lambda _: None)
            with ServiceConnection(self.url) as connection:
                return [kept_measurement(connection, one.measurement_id) for one in measured]

        blocks_ms = [[one.block_ms for one in measurement.rounds] for measurement in self._with_service(kept)]
        return [100 * abs(min(blocks[::2]) / min(blocks[1::2]) - 1) for blocks in blocks_ms]

    def _repeated(self, table: Table) -> dict[str, list[float]]:
        """Some of its operators, measured again so much later than the last of them was measured."""
        first = table.entries[:: max(len(table.entries) // self.repeated, 1)]
        operators, due = [one.operator for one in first], max(one.measured_at for one in first)
        due += timedelta(seconds=self.later_s)

        def newest(latencies: LatencyService) -> list[Latency]:
            return latencies.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)

        def measure(latencies: LatencyService) -> None:
            with ServiceConnection(self.url) as connection, start_agent(self.home, self.url):
                query = LatencyQuery(
                    device=latencies.device.model,
                    subjects=tuple(operators),
                    queue_missing=True,
                    measure_again=True,
                    client="benchmark",
                )
                connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)
                while any(one.measured_at < due for one in newest(latencies)):
                    self._in_time(f"{len(operators)} operators are being measured again")
                    time.sleep(0.5)

        if any(one.measured_at < due for one in self._with_service(newest)):
            wait_s = max((due - datetime.now(UTC)).total_seconds(), 0.0)
            self._in_time(f"{len(operators)} operators are measured again in {wait_s:.0f} s", needed_s=wait_s)
            time.sleep(wait_s)
            self._with_service(measure)
        pairs = list(zip(first, self._with_service(newest), strict=True))
        return {
            "repeated_pct": [100 * abs(later.latency_ms / one.latency_ms - 1) for one, later in pairs],
            "repeated_inside": [float(one.low_ms <= later.latency_ms <= one.high_ms) for one, later in pairs],
        }

    def _take(self, name: str, subjects: Sequence[Subject]) -> list[Latency]:
        """Have subjects converted, then measured, with nothing else at work."""
        self._with_service(lambda latencies: self._convert(name, subjects, latencies))
        missing = self._with_service(lambda latencies: self._missing(subjects, latencies))
        if missing:
            time.sleep(SETTLE_S)
            self._with_service(lambda latencies: self._measure(name, subjects, latencies))
        return self._with_service(
            lambda latencies: latencies.measured(subjects, purpose=Purpose.TABLE, on_progress=lambda _: None)
        )

    def _convert(self, name: str, subjects: Sequence[Subject], latencies: LatencyService) -> None:
        self._ask(subjects, latencies, queue_missing=True)
        with ConsoleProgress().task(f"{self.space_name}: converting {name}", len(subjects)) as advance:
            while (ready := self._ready(subjects)) < len(subjects):
                advance(ready)
                self._in_time(f"{ready} of {len(subjects)} {name} are converted")
                time.sleep(0.5)

    def _measure(self, name: str, subjects: Sequence[Subject], latencies: LatencyService) -> None:
        began = time.monotonic()
        with ExitStack() as stack:
            stack.callback(lambda: self._spend(name, time.monotonic() - began))
            stack.enter_context(start_agent(self.home, self.url, "--max-jobs", str(MAX_LEASED_JOBS)))
            advance = stack.enter_context(ConsoleProgress().task(f"{self.space_name}: measuring {name}", len(subjects)))
            while missing := self._missing(subjects, latencies):
                advance(len(subjects) - missing)
                self._in_time(f"{len(subjects) - missing} of {len(subjects)} {name} are measured")
                time.sleep(0.5)

    def _usual(self, operators: Sequence[Subject], *, seconds: float) -> dict[str, float]:
        """Milliseconds by the operator's id."""
        path = self.home / "usual.json"
        if not path.exists():
            typer.echo(f"{self.space_name}: the usual table, {seconds:.0f} s")
            models = {one.id: self.home / f"{one.id}.tflite" for one in operators}
            self._with_service(lambda _: self._fetch(models))
            write_text(path, json.dumps(mean_latencies_ms(models, seconds=seconds)))
        return dict(json.loads(path.read_text()))

    def _fetch(self, models: dict[str, Path]) -> None:
        database = Database(self.database_url)
        with database.reading() as session, ServiceConnection(self.url) as connection:
            rows = select(ModelRow.subject_id, ModelRow.sha256).where(ModelRow.subject_id.in_(models))
            for subject_id, sha256 in session.execute(rows):
                models[subject_id].write_bytes(connection.request("GET", f"/v1/models/{sha256}").content)
        database.dispose()

    def _introduce_the_device(self) -> None:
        """The service queues for devices that it knows."""
        with running_service(self.home) as (_, self.url):
            with ServiceConnection(self.url) as connection:
                if known_devices(connection):
                    return
            with start_agent(self.home, self.url) as agent:
                agent.wait_for_line("(measuring on)")

    def _with_service(self, use: Callable[[LatencyService], T]) -> T:
        with running_service(self.home) as (_, self.url), ServiceConnection(self.url) as connection:
            return use(LatencyService(connection, device=None, client="benchmark", wait=True))

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.home / 'service.db'}"

    def _ready(self, subjects: Sequence[Subject]) -> int:
        database = Database(self.database_url)
        with database.reading() as session:
            over = (ModelState.READY, ModelState.FAILED, ModelState.DROPPED)
            ids = [subject.id for subject in subjects]
            ready = session.scalar(select(func.count()).where(ModelRow.subject_id.in_(ids), ModelRow.state.in_(over)))
        database.dispose()
        return ready or 0

    def _missing(self, subjects: Sequence[Subject], latencies: LatencyService) -> int:
        answer = self._ask(subjects, latencies, queue_missing=False)
        over = (LatencyStatus.MEASURED, LatencyStatus.FAILED)
        return sum(entry.status not in over for entry in answer.entries)

    def _ask(self, subjects: Sequence[Subject], latencies: LatencyService, *, queue_missing: bool) -> LatencyAnswer:
        query = LatencyQuery(
            device=latencies.device.model, subjects=tuple(subjects), queue_missing=queue_missing, client="benchmark"
        )
        with ServiceConnection(self.url) as connection:
            return connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)

    def _spend(self, name: str, seconds: float) -> None:
        path = self.home / f"{name}.seconds"
        path.write_text(str(self._spent_s(name) + seconds))

    def _spent_s(self, name: str) -> float:
        path = self.home / f"{name}.seconds"
        return float(path.read_text()) if path.exists() else 0.0

    def _in_time(self, how_far: str, *, needed_s: float = 0.0) -> None:
        if time.monotonic() + needed_s > self.deadline:
            raise OutOfTime(f"{self.space_name}: {how_far}")


def unseen_networks(space: SearchSpace, seen: Sequence[Network], *, count: int) -> list[Network]:
    """Distinct networks drawn uniformly, none of those seen."""
    rng = np.random.default_rng(TEST_SEED)
    known, found = {network.id for network in seen}, dict[str, Network]()
    for _ in range(100 * count):
        network = space.network(space.sample(rng))
        if network.id not in known:
            found.setdefault(network.id, network)
        if len(found) == count:
            break
    return list(found.values())


def judge(
    table: Table, networks: Sequence[Network], latencies_ms: Sequence[float], usual_ms: dict[str, float]
) -> dict[str, Floats]:
    """What `Errors` holds of networks."""
    calibration = table.calibrations[0]
    predictions = [predicted(add_up(network.operators, table.by_subject), calibration) for network in networks]
    inside = [
        one.low_ms is not None and one.high_ms is not None and one.low_ms <= ms <= one.high_ms
        for one, ms in zip(predictions, latencies_ms, strict=True)
    ]
    sums_ms = [sum(usual_ms[operator.id] for operator in network.operators) for network in networks]
    return {
        "measured_ms": np.array(latencies_ms),
        "predicted_ms": np.array([one.latency_ms for one in predictions]),
        "usual_ms": np.array(sums_ms),
        "inside": np.array(inside, dtype=np.float64),
    }


def report(folder: Path, spaces: Sequence[str], *, save: bool) -> None:
    figures, measured_on = _of_another_day(spaces)
    tested = {}
    for space in spaces:
        document = json.loads((folder / f"{space}.json").read_text())
        errors = Errors._make(np.array(document[name]) for name in Errors._fields)
        figures |= {name + MARKS[space]: figure for name, figure in figures_of(errors).items()}
        tested[space], measured_on[space] = len(errors.measured_ms), datetime.now(UTC).date().isoformat()
    settings = {"networks": tested, "measured_on": measured_on}
    targets = {name: target for name, target in TARGETS.items() if name in figures}
    record("table_accuracy", settings=settings, figures=figures, targets=targets, save=save)


def _of_another_day(spaces: Sequence[str]) -> tuple[dict[str, Figure], dict[str, str]]:
    """Figures that the results file has of the other spaces, and by space when they were measured."""
    path = RESULTS / "table_accuracy.json"
    if not path.exists():
        return {}, {}
    written = json.loads(path.read_text())
    was_on = written["settings"]["measured_on"]
    kept = {space: day for space, day in was_on.items() if space not in spaces}
    figures = {
        name: Figure(**figure)
        for name, figure in written["figures"].items()
        if any(name.endswith("_large") == (space == "large") for space in kept)
    }
    return figures, kept


def figures_of(errors: Errors) -> dict[str, Figure]:
    """Each over all networks, or operators, with its 95 % bootstrap interval."""

    def figure(of: Callable[[NDArray[np.int64]], float], unit: str, *, count: int | None = None) -> Figure:
        number = count or len(errors.measured_ms)
        drawn = np.random.default_rng(0).integers(number, size=(RESAMPLES, number))
        low, high = np.quantile([of(rows) for rows in drawn], [0.025, 0.975])
        return Figure(of(np.arange(number)), float(low), float(high), unit)

    def off_pct(predicted_ms: Floats) -> Floats:
        return 100 * (predicted_ms / errors.measured_ms - 1)

    def tau(predicted_ms: Floats) -> Callable[[NDArray[np.int64]], float]:
        return lambda rows: float(kendalltau(predicted_ms[rows], errors.measured_ms[rows]).statistic)

    off, usual = off_pct(errors.predicted_ms), off_pct(errors.usual_ms)

    def within(bound_pct: int) -> Callable[[NDArray[np.int64]], float]:
        return lambda rows: float((np.abs(off[rows]) <= bound_pct).mean())

    shares = {f"within_{bound}pct_share": figure(within(bound), "share") for bound in (3, 5, 10)}
    return {
        "mape_pct": figure(lambda rows: float(np.abs(off[rows]).mean()), "%"),
        "worst_pct": figure(lambda rows: float(np.abs(off[rows]).max()), "%"),
        "bias_pct": figure(lambda rows: float(off[rows].mean()), "%"),
        **shares,
        "kendall_tau": figure(tau(errors.predicted_ms), "τ"),
        "coverage_share": figure(lambda rows: float(errors.inside[rows].mean()), "share"),
        "coverage_off_share": figure(lambda rows: round(abs(float(errors.inside[rows].mean()) - 0.95), 9), "share"),
        "table_s": Figure.over([float(errors.table_s)], "s"),
        "halves_difference_pct": figure(lambda rows: float(errors.halves_pct[rows].mean()), "%"),
        "usual_mape_pct": figure(lambda rows: float(np.abs(usual[rows]).mean()), "%"),
        "usual_kendall_tau": figure(tau(errors.usual_ms), "τ"),
        "repeat_within_interval_share": figure(
            lambda rows: float(errors.repeated_inside[rows].mean()), "share", count=len(errors.repeated_inside)
        ),
        "repeat_difference_pct": figure(
            lambda rows: float(np.median(errors.repeated_pct[rows])), "%", count=len(errors.repeated_pct)
        ),
    }


if __name__ == "__main__":
    typer.run(main)
