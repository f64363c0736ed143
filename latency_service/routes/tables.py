"""Published tables, as JSON or CSV, with an ETag."""

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Body, Header, Path, Query, Response

from latency_contract.tables import Table, TablePublication, TableSummary
from latency_service import devices, tables
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Reading, Service, Writing, refusals

router = APIRouter(route_class=GuardedRoute, prefix="/v1/tables", tags=["tables"])

TableId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", examples=["0" * 64])]


class TableFormat(StrEnum):
    JSON = "json"
    CSV = "csv"


Format = Annotated[TableFormat, Query(alias="format")]
IfNoneMatch = Annotated[str | None, Header()]
TABLE_RESPONSES = refusals(404) | {
    200: {"model": Table, "content": {"text/csv": {}}},
    304: {"description": "the caller's copy, named by If-None-Match, is this version"},
}


@router.get("", responses=refusals())
def all_tables(session: Reading) -> list[TableSummary]:
    """Every published version, newest first."""
    return tables.summaries(session)


@router.post("", responses=refusals(404))
def publish_table(
    publication: Annotated[TablePublication, Body(examples=[{"device": "Pixel 3"}])], session: Writing, service: Service
) -> Table:
    """Publish what is measured now as an immutable version; the last version where nothing has changed."""
    device_model, protocol = devices.resolve(session, publication.device, protocol_id=publication.protocol_id)
    return tables.publish(session, device_model=device_model, protocol=protocol, now=service.clock())


@router.get("/{table_id}", responses=TABLE_RESPONSES)
def last_version(
    table_id: TableId, session: Reading, as_format: Format = TableFormat.JSON, if_none_match: IfNoneMatch = None
) -> Response:
    """The last published version of a table."""
    return _response(tables.find(session, table_id, version=None), as_format, if_none_match)


@router.get("/{table_id}/versions/{version}", responses=TABLE_RESPONSES)
def one_version(
    table_id: TableId,
    version: Annotated[int, Path(ge=1, lt=2**31, examples=[1])],
    session: Reading,
    as_format: Format = TableFormat.JSON,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A published version of a table. It never changes."""
    return _response(tables.find(session, table_id, version=version), as_format, if_none_match)


def _response(table: Table, as_format: TableFormat, if_none_match: str | None) -> Response:
    etag = f'"{table.content_hash}-{as_format}"'
    if if_none_match is not None and etag in [tag.strip() for tag in if_none_match.split(",")]:
        return Response(status_code=304, headers={"ETag": etag})
    if as_format == TableFormat.CSV:
        return Response(table.to_csv(), media_type="text/csv", headers={"ETag": etag})
    return Response(table.model_dump_json(), media_type="application/json", headers={"ETag": etag})
