"""The application: routes, and the one place where refusals become HTTP."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from latency_contract.errors import ErrorBody, validation_sentence
from latency_service.converter import Converter
from latency_service.database import AWAY, Database, reason
from latency_service.errors import ServiceFault
from latency_service.metrics import Metrics
from latency_service.request_log import RequestLog
from latency_service.routes import (
    calibrations,
    devices,
    health,
    latencies,
    leases,
    metrics,
    model_files,
    pages,
    searches,
    tables,
)
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Parts
from latency_service.settings import Settings

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    database: Database,
    *,
    settings: Settings,
    clock: Callable[[], datetime] = utc_now,
    random: Random | None = None,
    local_agent_secret: str | None = None,
) -> FastAPI:
    figures = Metrics()
    figures.read(database, settings=settings, clock=clock)
    converter = Converter(database, settings=settings, clock=clock, metrics=figures) if settings.converts else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if converter is not None:
            converter.start()
        yield
        if converter is not None:
            converter.stop()
        database.dispose()

    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs-files",
        title="PAD-NAS latency service",
        summary="Latencies of mobile operators and networks, measured on real devices.",
        version="1",
        lifespan=lifespan,
    )
    app.add_middleware(RequestLog, metrics=figures, mistake=_our_own_mistake)
    app.state.parts = Parts(database, settings, converter, clock, random or Random(), local_agent_secret, figures)
    for router in (
        r.router
        for r in (latencies, devices, tables, calibrations, leases, model_files, searches, health, metrics, pages)
    ):
        assert all(isinstance(route, GuardedRoute) for route in router.routes), "what is not guarded is open to all"
        app.include_router(router)

    @app.exception_handler(ServiceFault)
    def refuse(request: Request, fault: ServiceFault) -> Response:
        return _refusal(request, fault.status, type(fault).__name__, str(fault), headers=fault.headers)

    @app.exception_handler(RequestValidationError)
    def refuse_malformed(request: Request, error: RequestValidationError) -> Response:
        return _refusal(request, 422, "MalformedRequest", validation_sentence(list(error.errors())))

    @app.exception_handler(HTTPException)
    def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's word for a body that is not even text
            return _error(422, "MalformedRequest", "The body is not JSON in UTF-8. Send JSON.")
        detail = f"{request.method} {request.url.path}: {error.detail}. The endpoints are listed at /docs."
        return _error(error.status_code, "HttpError", detail)

    def database_away(request: Request, error: SQLAlchemyError) -> Response:
        log.error("the database does not answer: %s", reason(error))
        figures.database_errors.inc()
        sentence = "The database does not answer at present; try again in a moment."
        return _refusal(request, 503, "DatabaseUnavailable", sentence)

    for away in AWAY:
        app.exception_handler(away)(database_away)

    return app


def _refusal(
    request: Request, status: int, name: str, detail: str, *, headers: dict[str, str] | None = None
) -> Response:
    """A page where a page was asked for, JSON elsewhere."""
    if isinstance(request.scope.get("route"), pages.PageRoute):
        return pages.refusal(status, name, detail, service=request.app.state.parts, headers=headers or {})
    return _error(status, name, detail, headers=headers)


def _error(status: int, name: str, detail: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorBody(error=name, detail=detail).model_dump(), status_code=status, headers=headers)


async def _our_own_mistake(scope: Scope, receive: Receive, send: Send) -> None:
    sentence = "The service made a mistake; its log says more under the X-Request-ID of this answer. Please report it."
    await _error(500, "InternalError", sentence)(scope, receive, send)
