"""Endpoints: calibrations of a table version, and predictions from a table."""

from typing import Annotated

from fastapi import APIRouter, Body, Path

from latency_contract.calibrations import MIN_NETWORKS, Calibration, CalibrationRequest
from latency_contract.predictions import Prediction, PredictionQuery
from latency_service import calibrations, tables
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Reading, Service, Writing, refusals
from latency_service.routes.tables import TableId

router = APIRouter(route_class=GuardedRoute, prefix="/v1/tables", tags=["tables"])

Version = Annotated[int, Path(ge=1, lt=2**31, examples=[1])]
REQUEST_EXAMPLE = {"space": "basic", "operator_ids": ["0" * 64], "network_ids": ["0" * 64] * MIN_NETWORKS}
QUERY_EXAMPLE = {
    "networks": [
        {
            "operators": [
                {"kind": "conv", "height": 224, "width": 224, "in_channels": 3, "out_channels": 32, "kernel": 3,
                 "stride": 2}
            ]
        }
    ]
}  # fmt: skip


@router.post("/{table_id}/versions/{version}/calibrations", responses=refusals(404, 409))
def calibrate(
    table_id: TableId,
    version: Version,
    request: Annotated[CalibrationRequest, Body(examples=[REQUEST_EXAMPLE])],
    session: Writing,
    service: Service,
) -> Calibration:
    """Calibrate a version with networks that were measured whole. The service fits; nobody sends it a latency."""
    table = tables.find(session, table_id, version=version)
    return calibrations.calibrate(session, table, request, now=service.clock())


@router.get("/{table_id}/versions/{version}/calibrations", responses=refusals(404))
def calibrations_of(table_id: TableId, version: Version, session: Reading) -> list[Calibration]:
    """Every calibration that holds for a version, the newest first. None of them ever changes."""
    return calibrations.history(session, tables.find(session, table_id, version=version))


@router.post("/{table_id}/predictions", responses=refusals(404))
def predictions(
    table_id: TableId, query: Annotated[PredictionQuery, Body(examples=[QUERY_EXAMPLE])], session: Reading
) -> list[Prediction]:
    """Latencies of networks from a table, with intervals, in the order asked. Nothing is queued.

    Calibrated are networks of operators that a calibration holds for; of the others the interval says how well their
    sum is known, and no more.
    """
    return calibrations.predict(session, tables.find(session, table_id, version=query.version), query)
