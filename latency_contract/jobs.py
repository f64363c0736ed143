"""Jobs and leases: the conversation between an agent and the service.

A job measures one subject on one device model under one protocol; a lease hands a batch of jobs to one unit
(docs/decisions/0002). What the agent answers is a measurement or the subject's failure; what it does not answer
it releases, or the lease's deadline does.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, model_validator

from latency_contract.canonical import Contract, Sha256
from latency_contract.devices import MAX_REASON as MAX_REASON
from latency_contract.devices import Reason, Serial
from latency_contract.estimators import MIN_ROUNDS
from latency_contract.measurements import MAX_ROUNDS, Measurement, Round
from latency_contract.operators import Subject
from latency_contract.protocols import Protocol

MAX_LEASED_JOBS = 64

Layers = Annotated[int, Field(ge=1, le=1000)]
JobId = Annotated[int, Field(ge=1, lt=2**63)]  # what a database's integer holds


class JobState(StrEnum):
    QUEUED = "queued"  # waits for its model or for a device
    LEASED = "leased"  # a device has it until the lease's deadline
    DONE = "done"  # its measurement is stored
    FAILED = "failed"  # the subject cannot be converted or measured; the last error is kept
    CANCELLED = "cancelled"  # nobody wants it any more


class LeaseRequest(Contract):
    serial: Serial
    max_jobs: Annotated[int, Field(ge=1, le=MAX_LEASED_JOBS)] = 16


class LeasedJob(Contract):
    job_id: JobId
    subject: Subject
    model_sha256: Sha256  # fetch it at /v1/models/{sha256}
    attempt: int  # 1 the first time
    layers: Layers = 1  # in which whoever asked may use it; where time is short, it goes where it counts


class Lease(Contract):
    """A batch of jobs, owned until `expires_at` by whoever knows the token."""

    token: Annotated[str, Field(min_length=32, max_length=64)]
    lease_s: float  # a renewal gives this much time again
    expires_at: AwareDatetime
    protocol: Protocol
    reference_sha256: Sha256  # model of the protocol's reference operator
    jobs: Annotated[tuple[LeasedJob, ...], Field(min_length=1)]


class DeviceCheck(Contract):
    """In the place of a lease, for a unit in quarantine: measure the reference operator alone."""

    protocol: Protocol
    reference_sha256: Sha256
    reason: Reason  # of the quarantine


class CheckReport(Contract):
    """Rounds of the reference operator, framed by itself, as many as a measurement has at least."""

    rounds: Annotated[tuple[Round, ...], Field(min_length=MIN_ROUNDS, max_length=MAX_ROUNDS)]


class Measured(Contract):
    outcome: Literal["measured"] = "measured"
    job_id: JobId
    measurement: Measurement


class Failed(Contract):
    """The subject's own fault: its model does not load, or ends the runner."""

    outcome: Literal["failed"] = "failed"
    job_id: JobId
    error: Reason  # a sentence, with the output that led to it


class LeaseReport(Contract):
    outcomes: Annotated[
        tuple[Annotated[Measured | Failed, Field(discriminator="outcome")], ...],
        Field(min_length=1, max_length=MAX_LEASED_JOBS),
    ]


class Reported(Contract):
    """What was stored is not to be sent again because a newer service says more."""

    model_config = ConfigDict(extra="ignore")

    remaining: int  # jobs of the lease without an outcome


class LeaseRelease(Contract):
    """Give back what is left of a lease; with a `device_fault`, the device rests before its next one.

    A job that is given back has not been tried, except `suspects`: those that ran when the device went down, and may
    have brought it down. A pulled cable has none.
    """

    device_fault: Reason | None = None
    suspects: Annotated[tuple[JobId, ...], Field(max_length=MAX_LEASED_JOBS)] = ()

    @model_validator(mode="after")
    def _suspected_of_something(self) -> Self:
        if self.suspects and self.device_fault is None:
            raise ValueError("suspects are named together with the device_fault that they may have caused")
        return self


class LeaseState(Contract):
    expires_at: AwareDatetime
    remaining: int  # jobs of the lease without an outcome
