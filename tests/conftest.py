"""What tests of several packages share: subjects, measurements, a migrated database, a live service."""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from benchmarks.debian_adbd import installed
from benchmarks.debian_caddy import program as caddy
from benchmarks.debian_packages import CannotInstall, unpacked
from benchmarks.postgresql import PostgresqlServer, running_server
from latency_contract.canonical import content_hash
from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, DeviceKind, DeviceReport
from latency_contract.estimators import UNKNOWN, Spread
from latency_contract.jobs import LeasedJob, Measured
from latency_contract.measurements import DeviceState, Measurement, Provenance, Round
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_contract.tables import LatencyQuery
from latency_service.app import create_app
from latency_service.database import Database
from latency_service.settings import Settings
from tests.agents import answer_lease

settings.register_profile("any machine", deadline=None)  # no test here is about time
settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
LIVE_SETTINGS = Settings(lease_s=3.0)
START = datetime(2026, 1, 1, tzinfo=UTC)


class OneMeasures(LoadScopeScheduling):  # type: ignore[misc]
    """A file stays with one worker, and all that measure on this machine with the same one: no other waits for it."""

    MEASURING = frozenset(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if 'usefixtures("this_machine")' in path.read_text()
    )

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "this machine" if file in self.MEASURING else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneMeasures:
    return OneMeasures(config, log)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Outside data to check against; tests that want it skip where it is absent."""
    path = Path(os.environ.get("PADNAS_SHARED_DATA", "../shared/data"))
    if not path.is_dir():
        pytest.skip(f"no outside data at {path}; PADNAS_SHARED_DATA says where it is")
    return path


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set up logging, in tests to an output that is closed after them."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def this_machine() -> Iterator[None]:
    """For files whose tests measure on this machine: one at a time does so, of all processes that run tests."""
    with (Path(tempfile.gettempdir()) / "padnas-tests-this-machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file in the state that the migrations leave it in, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own, as the migrations leave it: the test runs on SQLite, then on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "test.db")
        yield f"sqlite:///{tmp_path / 'test.db'}"
    else:
        server: PostgresqlServer = request.getfixturevalue("postgresql")
        with server.database() as url:
            yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database, on SQLite and on PostgreSQL."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def operator() -> Callable[..., IBConv]:
    """A small operator; keywords change it."""

    def make(**changes: Any) -> IBConv:
        fields = {"height": 8, "width": 8, "in_channels": 8, "out_channels": 8, "kernel": 3, "stride": 1}
        return IBConv.model_validate(fields | {"expansion": 3, "residual": False} | changes)

    return make


@pytest.fixture
def report() -> Callable[..., DeviceReport]:
    """A phone's description; keywords change it."""

    def make(**changes: Any) -> DeviceReport:
        protocol = Protocol(runtime="litert", runtime_version="2.3.0")
        fields = {"serial": "A1", "model": "Pixel 3", "kind": DeviceKind.ANDROID, "soc": "SDM845", "os_build": "12"}
        return DeviceReport.model_validate(fields | {"protocol": protocol} | changes)

    return make


@pytest.fixture
def measurement() -> Callable[..., Measurement]:
    """A measurement made of one-sample rounds."""

    def make(
        subject_id: str,
        medians_ms: Sequence[float] = (1.0, 1.001, 1.002, 1.003, 1.004, 1.005),
        *,
        model_sha256: str = "0" * 64,
        serial: str = "A1",
        reference_ms: float = 1.0,
        at: datetime = START,
        pooled: Spread = UNKNOWN,
        quiet_reference_ms: float | None = None,
    ) -> Measurement:
        rounds = tuple(
            Round(started_at=START, samples_ms=(m,), reference_before_ms=reference_ms, reference_after_ms=reference_ms)
            for m in medians_ms
        )
        provenance = Provenance(
            device_serial=serial, os_build="12", soc="SDM845", model_sha256=model_sha256, runner="test",
            runner_sha256="1" * 64, core_mask="80", before=DeviceState(), after=DeviceState(),
            unreadable=DeviceState().unreadable, started_at=at, finished_at=at,
        )  # fmt: skip
        stopping = Protocol(runtime="litert", runtime_version="2.3.0").stopping
        return Measurement.from_rounds(
            rounds,
            subject_id=subject_id,
            stopping=stopping,
            provenance=provenance,
            pooled=pooled,
            quiet_reference_ms=reference_ms if quiet_reference_ms is None else quiet_reference_ms,
        )

    return make


@pytest.fixture(scope="session")
def sqlite_service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(f"sqlite:///{tmp_path_factory.mktemp('service') / 'live.db'}") as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_service_url(postgresql: PostgresqlServer) -> Iterator[str]:
    with postgresql.database() as database_url, live_service(database_url) as url:
        yield url


@pytest.fixture(scope="session")
def service_url(sqlite_service_url: str) -> str:
    """A live service; on PostgreSQL too in tests of the service itself (latency_service/conftest.py)."""
    return sqlite_service_url


@contextmanager
def live_service(database_url: str, *, settings: Settings = LIVE_SETTINGS) -> Iterator[str]:
    """A service on a free port of 127.0.0.1, with a real database and a real converter."""
    database = Database(database_url)
    database.migrate()
    config = uvicorn.Config(create_app(database, settings=settings), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def connection(service_url: str) -> Iterator[ServiceConnection]:
    with ServiceConnection(service_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def debian_adbd() -> Path:
    """Where Debian's `adbd` is installed."""
    return _of_debian(installed)


@pytest.fixture(scope="session")
def debian_caddy() -> Path:
    """Debian's Caddy."""
    return _of_debian(caddy)


@pytest.fixture(scope="session")
def debian_shells() -> Path:
    """Where Debian's mksh, which is Android's shell, and BusyBox are."""
    return _of_debian(lambda: unpacked("shells", ["mksh", "busybox"]))


def _of_debian(install: Callable[[], Path]) -> Path:
    """Where something cannot be installed, its tests are skipped; under CI they fail."""
    try:
        return install()
    except CannotInstall as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))


@pytest.fixture
def measured_units(
    connection: ServiceConnection,
    report: Callable[..., DeviceReport],
    operator: Callable[..., IBConv],
    measurement: Callable[..., Measurement],
) -> Callable[[str, dict[str, float]], None]:
    """Has units of a model, by serial, measure six operators each, with these readings of the reference operator."""
    each = 6

    def answer_as(serial: str, reference_ms: float, job: LeasedJob) -> Measured:
        made = measurement(job.subject.id, model_sha256=job.model_sha256, serial=serial, reference_ms=reference_ms)
        return Measured(job_id=job.job_id, measurement=made)

    def measure(model: str, readings_ms: dict[str, float]) -> None:
        for serial in readings_ms:
            connection.ask("PUT", f"/v1/devices/{serial}", Device, body=report(serial=serial, model=model))
        wanted = tuple(operator(height=h) for h in range(1, each * len(readings_ms) + 1))
        query = LatencyQuery(device=model, subjects=wanted, queue_missing=True, client=content_hash(model))
        connection.request("POST", "/v1/latencies/query", body=query)
        for serial, reference_ms in readings_ms.items():
            answer = partial(answer_as, serial, reference_ms)
            left = each
            while left:
                answered = answer_lease(connection, serial, answer, max_jobs=left)
                if not answered:  # still being converted
                    time.sleep(0.02)
                left -= answered

    return measure


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
