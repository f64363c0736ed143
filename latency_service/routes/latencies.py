"""Asking for latencies: a batch for programs, one operator for people."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from latency_contract import tables
from latency_contract.measurements import Measurement
from latency_contract.operators import KEY_EXAMPLE, Subject, parse_key
from latency_contract.tables import MAX_QUERY, LatencyAnswer, LatencyEntry, LatencyRelease, Released
from latency_service import devices, latencies, queue
from latency_service.errors import UnknownOperator
from latency_service.routes.access import GuardedRoute, Who
from latency_service.routes.dependencies import Reading, Service, Writing, json_of, refusals
from latency_service.subjects import read_subject

router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["latencies"])

_OPERATOR = parse_key(KEY_EXAMPLE).model_dump(mode="json")
_STEM = {"kind": "conv", "height": 32, "width": 32, "in_channels": 3, "out_channels": 16, "kernel": 3, "stride": 2}
_HEAD = {"kind": "head", "height": 16, "width": 16, "in_channels": 16, "hidden_channels": 64, "out_channels": 10}
QUERY_EXAMPLES = {
    "operators": {
        "summary": "A batch of operators; what is missing is queued",
        "value": {"device": "Pixel 3", "subjects": [_OPERATOR], "queue_missing": True, "purpose": "table"},
    },
    "network": {
        "summary": "A whole network",
        "value": {
            "device": "Pixel 3",
            "subjects": [{"kind": "network", "operators": [_STEM, _HEAD]}],
            "queue_missing": True,
            "client": "my-search",
            "purpose": "search",
        },
    },
}


def _recognise(value: Any, check: ValidatorFunctionWrapHandler) -> Subject:
    """Most subjects were asked about before: by another client, or a moment ago."""
    if isinstance(value, dict):
        try:
            return read_subject(json.dumps(value))
        except (ValidationError, RecursionError):
            pass  # the check says where in the question it is
    subject: Subject = check(value)
    return subject


class LatencyQuery(tables.LatencyQuery):
    """As the contract has it, and under its name in OpenAPI."""

    subjects: Annotated[
        tuple[Annotated[Subject, WrapValidator(_recognise)], ...], Field(min_length=1, max_length=MAX_QUERY)
    ]


@router.post("/latencies/query", response_model=LatencyAnswer, responses=refusals(404, 429))
def query_latencies(
    query: Annotated[LatencyQuery, Body(openapi_examples=QUERY_EXAMPLES)],
    service: Service,
    who: Who,
) -> Response:
    """Latencies of operators and networks on a device. Ask again until nothing is queued or leased any more."""
    now = service.clock()
    with service.database.writing() if query.queue_missing else service.database.reading() as session:
        device_model, protocol = devices.resolve(session, query.device, protocol_id=query.protocol_id)
        entries = latencies.look_up(
            session, query.subjects, device_model=device_model, protocol=protocol, newer_than=query.newer_than
        )
        if query.queue_missing:
            entries = latencies.queue_missing(
                session,
                query,
                entries,
                device_model=device_model,
                protocol=protocol,
                owner=who.name,
                max_waiting=service.settings.max_waiting,
                now=now,
            )
        units = devices.at_work(
            session, device_model=device_model, protocol_id=protocol.id, settings=service.settings, now=now
        )
    if query.queue_missing and service.converter is not None:
        service.converter.wake()
    return json_of(
        LatencyAnswer(
            device_model=device_model,
            protocol_id=protocol.id,
            entries=tuple(entries),
            device_alive=units.alive,
            standstill=units.standstill,
        )
    )


@router.post("/latencies/release", responses=refusals())
def release_latencies(
    release: Annotated[LatencyRelease, Body(examples=[{"client": "my-search"}])],
    session: Writing,
    service: Service,
    who: Who,
) -> Released:
    """A client no longer wants something measured. Jobs that nobody wants are cancelled.

    What clients of other tokens want is not concerned, whatever they call themselves.
    """
    cancelled = queue.withdraw(
        session, release.client, owner=who.name, subject_ids=release.subject_ids, now=service.clock()
    )
    return Released(cancelled=cancelled)


@router.get("/devices/{device:path}/latencies/{key}", responses=refusals(404))
def one_latency(
    device: Annotated[str, Path(examples=["Pixel 3"])],
    key: Annotated[str, Path(examples=[KEY_EXAMPLE])],
    session: Reading,
    protocol_id: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
) -> LatencyEntry:
    """The latency of one operator by its text key. Nothing is queued."""
    try:
        operator = parse_key(key)
    except ValueError as error:
        raise UnknownOperator(str(error)) from error
    device_model, protocol = devices.resolve(session, device, protocol_id=protocol_id)
    return latencies.look_up(session, [operator], device_model=device_model, protocol=protocol)[0]


@router.get("/measurements/{measurement_id}", responses=refusals(404))
def one_measurement(
    measurement_id: Annotated[int, Path(examples=[1], ge=1, lt=2**63)], session: Reading
) -> Measurement:
    """A measurement with every round and its provenance; with every sample and rejected round while they are kept."""
    return latencies.measurement(session, measurement_id)
