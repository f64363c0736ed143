"""Figures for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Service, refusals

router = APIRouter(route_class=GuardedRoute, tags=["health"])
PAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "description": "metrics in Prometheus' text format"}
}


@router.get("/metrics", response_class=Response, responses=refusals() | PAGE)
def metrics(service: Service) -> Response:
    """How the service fares: queue, devices, measurements, conversions, requests. The help of each says whose it is."""
    return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)
