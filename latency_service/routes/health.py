"""Is the process alive, and can it serve?"""

from fastapi import APIRouter

from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Service, refusals

router = APIRouter(route_class=GuardedRoute, tags=["health"])


@router.get("/healthz", responses=refusals())
async def healthz() -> dict[str, str]:  # in no thread: those may all wait for the database
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=refusals(503))
def readyz(service: Service) -> dict[str, str]:
    """The database answers and has the right schema. Requests are served while the converter warms up."""
    service.database.check_schema()
    if service.converter is None:
        return {"database": "ok", "converter": "elsewhere"}
    return {"database": "ok", "converter": "warm" if service.converter.warm else "warming up"}
