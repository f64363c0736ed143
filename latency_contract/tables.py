"""Lookup tables, and the question and answer about latencies.

A table belongs to a (device model, protocol). Its published versions never change.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from latency_contract.calibrations import Calibration
from latency_contract.canonical import Contract, Sha256, content_hash
from latency_contract.jobs import Layers
from latency_contract.measurements import Milliseconds, Verdict
from latency_contract.operators import Conv, Head, IBConv, Operator, Subject
from latency_contract.protocols import Protocol

MAX_QUERY = 1000  # subjects in one question


class LatencyStatus(StrEnum):
    MEASURED = "measured"  # there is a latency
    QUEUED = "queued"  # a job waits for conversion or for a device
    LEASED = "leased"  # a device is at it
    FAILED = "failed"  # it was tried and cannot be measured; `error` says why
    MISSING = "missing"  # nobody has asked for it to be measured


class Purpose(StrEnum):
    """Who waits for the answer. The order is that in which devices serve."""

    SEARCH = "search"  # a running search cannot go on without it
    TABLE = "table"  # a table is being built
    REFINEMENT = "refinement"  # a search goes on without it, and would like to know better what it knows already


class Latency(Contract):
    """The number without its evidence; `measurement_id` opens the rest."""

    measurement_id: int
    latency_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    confidence: float
    verdict: Verdict
    rounds: int
    device_serial: str
    measured_at: AwareDatetime


class LatencyQuery(Contract):
    device: Annotated[str, Field(min_length=1, max_length=100, description="a device model, or one unit's serial")]
    subjects: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=MAX_QUERY)]
    protocol_id: Sha256 | None = None  # default: the one that the device measures under
    queue_missing: bool = False  # queue a job for what is missing, and try again what failed
    measure_again: bool = False  # with queue_missing: also for what is measured; the newest measurement counts
    # Measurements up to this one count as missing: with queue_missing, ask again until the newer ones are there.
    newer_than: Annotated[int, Field(ge=0, lt=2**31)] = 0
    client: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.:-]+$")] = "anonymous"
    purpose: Purpose = Purpose.TABLE
    # In how many layers of a space each subject is a choice: its error counts as often. One, where nothing is said.
    layers: Annotated[tuple[Layers, ...], Field(max_length=MAX_QUERY)] = ()

    @model_validator(mode="after")
    def _layers_of_each(self) -> Self:
        if self.layers and len(self.layers) != len(self.subjects):
            raise ValueError(f"layers are given for {len(self.layers)} of {len(self.subjects)} subjects")
        return self


class LatencyEntry(Contract):
    subject_id: Sha256
    key: str
    status: LatencyStatus
    latency: Latency | None = None  # exactly when measured
    error: str | None = None  # exactly when failed


class LatencyAnswer(Contract):
    device_model: str
    protocol_id: Sha256
    entries: tuple[LatencyEntry, ...]  # in the order of the question
    device_alive: bool  # at least one unit that measures under this protocol has an agent at work
    standstill: str | None = None  # a sentence: why none of those units measures at present, and what to do


class LatencyRelease(Contract):
    """A client no longer wants these subjects measured (or any, where none are named)."""

    client: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.:-]+$")]
    subject_ids: Annotated[tuple[Sha256, ...], Field(max_length=MAX_QUERY)] | None = None


class Released(Contract):
    cancelled: int  # jobs that nobody wants any more


class TablePublication(Contract):
    """Ask for an immutable version of a table as it stands now."""

    device: Annotated[str, Field(min_length=1, max_length=100)]
    protocol_id: Sha256 | None = None


class TableSummary(Contract):
    table_id: Sha256
    device_model: str
    protocol_id: Sha256
    version: int
    published_at: AwareDatetime
    entries: int


class TableEntry(Latency):
    key: str
    subject_id: Sha256
    operator: Operator


CSV_COLUMNS = (
    "key", "latency_ms", "low_ms", "high_ms", "confidence", "verdict", "rounds", "device_serial", "measured_at",
    "measurement_id", "subject_id",
)  # fmt: skip


class Table(Contract):
    """One published version: every operator measured so far on a device model under a protocol."""

    table_id: Sha256
    version: Annotated[int, Field(ge=1)]
    device_model: str
    protocol: Protocol
    published_at: AwareDatetime
    entries: tuple[TableEntry, ...]  # by key
    calibrations: tuple[Calibration, ...] = ()  # where they go with it: in a file, or in a search; the newest first

    @cached_property
    def content_hash(self) -> str:
        return content_hash(self)

    @cached_property
    def by_subject(self) -> dict[str, TableEntry]:
        return {entry.subject_id: entry for entry in self.entries}

    def holds(self, calibration: Calibration) -> bool:
        """Whether the calibration was made with the very latencies that this version has."""
        entries = self.by_subject
        return calibration.table_id == self.table_id and all(
            subject_id in entries and entries[subject_id].measurement_id == measurement_id
            for subject_id, measurement_id in calibration.measurements.items()
        )

    def calibration_for(self, operators: Iterable[Conv | IBConv | Head]) -> Calibration | None:
        """The newest that holds for networks of these operators; None where they are not calibrated."""
        wanted = {operator.id for operator in operators}
        return next((one for one in self.calibrations if wanted <= one.measurements.keys()), None)

    def with_calibrations(self, calibrations: Sequence[Calibration]) -> Self:
        """The same version, with these beside it."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(fields | {"calibrations": tuple(calibrations)})

    def to_csv(self) -> str:
        """Comment lines that say what was measured where, then one line an operator."""
        text = io.StringIO(newline="")
        text.write(f"# device model: {self.device_model}\n# table: {self.table_id} version {self.version}\n")
        text.write(f"# published: {self.published_at.isoformat()}\n# protocol: {self.protocol.model_dump_json()}\n")
        writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entry.model_dump(mode="json") for entry in self.entries)
        return text.getvalue()


def table_id(*, device_model: str, protocol_id: str) -> str:
    return content_hash({"device_model": device_model, "protocol_id": protocol_id})
