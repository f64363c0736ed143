"""A search says how far it is. It is shown at `/`."""

from typing import Annotated

from fastapi import APIRouter, Body, Path

from latency_contract.searches import BestFound, SearchReport, SearchState
from latency_service import searches
from latency_service.routes.access import GuardedRoute, Who
from latency_service.routes.dependencies import Service, Writing, refusals

router = APIRouter(route_class=GuardedRoute, prefix="/v1/searches", tags=["searches"])

EXAMPLE = SearchReport.model_validate(
    {
        "name": "pixel3-basic", "device": "Pixel 3", "space": "basic", "state": SearchState.RUNNING,
        "started_at": "2026-01-01T00:00:00Z", "stage": 2, "stages": 3, "doing": "stage 2: searching", "done": 12,
        "total": 41, "best": BestFound(accuracy=0.713, latency_ms=64.2),
    }
).model_dump(mode="json")  # fmt: skip


@router.put("/{search_id}", responses=refusals(), status_code=204)
def report_search(
    search_id: Annotated[
        str, Path(min_length=1, max_length=100, pattern=r"^[\w.:-]+$", examples=["search-5f0c4a1e9d2b7c33"])
    ],
    report: Annotated[SearchReport, Body(examples=[EXAMPLE])],
    session: Writing,
    service: Service,
    who: Who,
) -> None:
    """How far a search is, for the dashboard. The newest hundred of each token are kept."""
    searches.report(session, search_id, report, owner=who.name, now=service.clock())
