"""The dashboard: pages for people, at `/` and below. They read, and change nothing."""

from pathlib import Path as File
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse, HTMLResponse

from latency_service import dashboard, pages
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Reading, Service

STATIC = File(pages.__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ASK = {"WWW-Authenticate": 'Basic realm="PAD-NAS: any user name, and your token as password", charset="UTF-8"'}


class PageRoute(GuardedRoute):
    """A page: what is refused there is refused by a page too (app.py)."""


router = APIRouter(route_class=PageRoute, default_response_class=HTMLResponse, include_in_schema=False)

PageNumber = Annotated[int, Query(alias="page", ge=1, lt=2**31)]
TableId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


@router.get("/")
def front(session: Reading, service: Service, page: PageNumber = 1) -> HTMLResponse:
    """Devices, queue, searches, tables, and first of all what needs attention."""
    now = service.clock()
    shown = dashboard.front(session, database=service.database.url, settings=service.settings, page=page, now=now)
    return _page("front.html", service, shown=shown, max_attention=dashboard.ATTENTION)


@router.get("/devices/{name:path}")
def device_model(name: str, session: Reading, service: Service, page: PageNumber = 1) -> HTMLResponse:
    """The units of one model, and which one is odd."""
    now = service.clock()
    shown = dashboard.device_model(session, name, settings=service.settings, page=page, now=now)
    return _page("device_model.html", service, shown=shown)


@router.get("/tables/{table_id}")
def last_version(table_id: TableId, session: Reading, service: Service, page: PageNumber = 1) -> HTMLResponse:
    """The last version of a table as a heat map."""
    return _page("table.html", service, shown=dashboard.table(session, table_id, version=None, page=page))


@router.get("/tables/{table_id}/versions/{version}")
def one_version(
    table_id: TableId,
    version: Annotated[int, Path(ge=1, lt=2**31)],
    session: Reading,
    service: Service,
    page: PageNumber = 1,
) -> HTMLResponse:
    return _page("table.html", service, shown=dashboard.table(session, table_id, version=version, page=page))


@router.get("/measurements/{number}")
def measurement(number: Annotated[int, Path(ge=1, lt=2**63)], session: Reading, service: Service) -> HTMLResponse:
    """A measurement down to its rounds."""
    return _page("measurement.html", service, shown=dashboard.measurement(session, number))


@router.get("/compare")
def compare(
    session: Reading,
    service: Service,
    first: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
    second: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
    page: PageNumber = 1,
) -> HTMLResponse:
    """Two tables operator by operator; without two, what there is to be compared."""
    shown = dashboard.comparison(session, first, second, page=page) if first and second else None
    choices = dashboard.comparable(session)
    return _page("compare.html", service, shown=shown, choices=choices, first=first, second=second)


@router.get("/dashboard.css")
def style() -> FileResponse:
    return _file("dashboard.css")


@router.get("/dashboard.js")
def script() -> FileResponse:
    return _file("dashboard.js")


@router.get("/dashboard.svg")
def icon() -> FileResponse:
    return _file("dashboard.svg")


def refusal(status: int, name: str, sentence: str, *, service: Service, headers: dict[str, str]) -> HTMLResponse:
    """What a browser shows in the place of a page. A missing or unknown token makes it ask for one."""
    content = pages.render("refusal.html", now=service.clock(), status=status, sentence=sentence, name=name)
    return HTMLResponse(content, status_code=status, headers=headers | pages.HEADERS | (ASK if status == 401 else {}))


def _page(template: str, service: Service, **values: Any) -> HTMLResponse:
    return HTMLResponse(pages.render(template, now=service.clock(), **values), headers=pages.HEADERS)


def _file(name: str) -> FileResponse:
    kept = {"Cache-Control": "max-age=300"}  # an upgraded service is not shown in its old clothes for long
    return FileResponse(STATIC / name, media_type=TYPES[File(name).suffix], headers=pages.HEADERS | kept)
