"""Searches that chose to report themselves, for the dashboard."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from latency_contract.searches import SearchReport
from latency_service.models import SearchRow
from latency_service.subjects import insert_if_absent

KEPT = 100  # of each token's searches the newest; more are of interest to nobody who looks at a dashboard


class ReportedSearch(NamedTuple):
    report: SearchReport
    owner: str  # name of its token; empty where there are no tokens
    reported_at: datetime


def report(session: Session, search_id: str, said: SearchReport, *, owner: str, now: datetime) -> None:
    """The last word of a search. Two of one id are two where their tokens are."""
    row = {"document": said.model_dump_json(), "reported_at": now}
    session.execute(
        insert_if_absent(session, SearchRow)
        .values(owner=owner, id=search_id, **row)
        .on_conflict_do_update(index_elements=[SearchRow.owner, SearchRow.id], set_=row)
    )
    newest = (
        select(SearchRow.id)
        .where(SearchRow.owner == owner)
        .order_by(SearchRow.reported_at.desc(), SearchRow.id)
        .limit(KEPT)
    )
    session.execute(
        delete(SearchRow).where(SearchRow.owner == owner, SearchRow.id.not_in(newest)),
        execution_options={"synchronize_session": False},
    )


def recent(session: Session, *, limit: int) -> list[ReportedSearch]:
    """Those heard of last, the newest word first."""
    rows = session.scalars(select(SearchRow).order_by(SearchRow.reported_at.desc(), SearchRow.id).limit(limit))
    return [ReportedSearch(SearchReport.model_validate_json(row.document), row.owner, row.reported_at) for row in rows]
