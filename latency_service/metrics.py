"""Figures for Prometheus.

Those of the database are read when they are asked for, and are the same at every service on it. Those of this process
are since its start: of several services, add them up. Each says in its help which it is.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from latency_service.database import Database
from latency_service.models import DeviceRow
from latency_service.overview import Overview, overview
from latency_service.settings import Settings

REQUEST_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
CONVERSION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100, 300)  # an operator 0.3 s, a network some seconds
SHARED = "From the database, the same at every service on it."
OWN = "Of this process, since its start."


class Metrics:
    """What one service counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.request_s = Histogram(
            "padnas_request_duration_seconds",
            f"Requests by route. {OWN}",
            ["method", "route", "status"],
            buckets=REQUEST_BUCKETS_S,
            registry=self._registry,
        )
        self.conversion_s = Histogram(
            "padnas_conversion_duration_seconds",
            f"Time to a TFLite model, where there came one; the first waits for TensorFlow. {OWN}",
            buckets=CONVERSION_BUCKETS_S,
            registry=self._registry,
        )
        self.conversions = Counter(
            "padnas_conversions",
            f"Conversions that ended: ready, failed (the subject's fault) or crashed (tried again). {OWN}",
            ["result"],
            registry=self._registry,
        )
        self.database_errors = Counter(
            "padnas_database_errors",
            f"Times that the database did not answer, or not in time. {OWN}",
            registry=self._registry,
        )

    def read(self, database: Database, *, settings: Settings, clock: Callable[[], datetime]) -> None:
        """From now on, also show what the database says."""
        self._registry.register(_DatabaseFigures(database, settings, clock))

    def page(self) -> bytes:
        return generate_latest(self._registry)


class _DatabaseFigures(Collector):
    def __init__(self, database: Database, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._database, self._settings, self._clock = database, settings, clock

    def describe(self) -> list[Metric]:
        """Nothing, so that no database is asked when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("padnas_database_up", f"Whether the database answers. {OWN}")
        try:
            now = self._clock()
            with self._database.reading() as session:
                found = overview(session, now=now)
        except SQLAlchemyError:  # then the figures of this process are needed all the more
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _queue(found, now)
        yield from _devices(found.devices, now, alive_s=self._settings.alive_s)


def _queue(found: Overview, now: datetime) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(
        "padnas_jobs",
        f"Jobs that are queued or leased; search comes before table. {SHARED}",
        labels=["device_model", "state", "priority"],
    )
    for backlog in found.backlog:
        jobs.add_metric([backlog.device_model, backlog.state, backlog.purpose], backlog.jobs)
    oldest = GaugeMetricFamily(
        "padnas_oldest_queued_job_seconds", f"Age of the oldest queued job. {SHARED}", labels=["device_model"]
    )
    for model, since in found.oldest_queued_at.items():
        oldest.add_metric([model], (now - since).total_seconds())
    failed = CounterMetricFamily(
        "padnas_jobs_failed", f"Jobs that ended without a measurement. {SHARED}", labels=["device_model"]
    )
    expiries = CounterMetricFamily(
        "padnas_lease_expiries",
        f"Leased jobs whose deadline passed, counted when the next device takes them or they are given up. {SHARED}",
        labels=["device_model"],
    )
    for family, by_model in ((failed, found.failed), (expiries, found.expiries)):
        for model, count in by_model.items():
            family.add_metric([model], count)
    conversions = GaugeMetricFamily(
        "padnas_models", f"Subjects that wait for their model, or cannot have one. {SHARED}", labels=["state"]
    )
    for state, subjects in found.conversions.items():
        conversions.add_metric([state], subjects)
    yield from (jobs, oldest, failed, expiries, conversions)


def _devices(rows: Sequence[DeviceRow], now: datetime, *, alive_s: float) -> Iterator[Metric]:
    labels = ["device_model", "serial"]
    alive = GaugeMetricFamily(
        "padnas_device_alive", f"Whether an agent spoke for the unit in the last {alive_s:g} s. {SHARED}", labels=labels
    )
    blocked = GaugeMetricFamily(
        "padnas_device_blocked", f"Whether the unit rests after a fault of its own. {SHARED}", labels=labels
    )
    quarantined = GaugeMetricFamily(
        "padnas_device_quarantined",
        f"Whether the unit gets no jobs since its reference operator left its history. {SHARED}",
        labels=labels,
    )
    faults = GaugeMetricFamily("padnas_device_faults", f"Faults in a row. {SHARED}", labels=labels)
    measured = CounterMetricFamily(
        "padnas_measurements", f"Accepted measurements. {SHARED}", labels=[*labels, "verdict"]
    )
    for row in rows:
        unit = [row.model, row.serial]
        alive.add_metric(unit, row.last_seen_at >= now - timedelta(seconds=alive_s))
        blocked.add_metric(unit, row.blocked_until is not None and row.blocked_until > now)
        quarantined.add_metric(unit, row.quarantine is not None)
        faults.add_metric(unit, row.faults)
        measured.add_metric([*unit, "steady"], row.measured_steady)
        measured.add_metric([*unit, "unsteady"], row.measured_unsteady)
    yield from (alive, blocked, quarantined, faults, measured)
