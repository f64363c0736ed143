"""Which subjects wait for their TFLite model, and what became of them. The work itself is in converter.py."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from latency_contract.operators import Subject
from latency_contract.protocols import Protocol
from latency_service import model_files, queue
from latency_service.models import ModelRow, ModelState, ProtocolRow, SubjectRow
from latency_service.queue import MODELS, SUBJECTS
from latency_service.subjects import LISTED, insert_if_absent, listed, read_protocol, read_subject, the_list

PROTOCOLS = ProtocolRow.metadata.tables[ProtocolRow.__tablename__]


class Conversion(NamedTuple):
    """A subject that a converter has claimed."""

    subject_id: str
    precision: str
    document: str  # canonical JSON of the subject
    attempt: int


class Converted(NamedTuple):
    """A subject that has its TFLite file."""

    subject: Subject
    sha256: str  # of the file


def request(session: Session, subject_ids: Sequence[str], *, precision: str, now: datetime) -> None:
    """Have these subjects converted, if they are not already; one that failed or was dropped is converted anew."""
    if not subject_ids:
        return
    fresh = {"precision": precision, "state": ModelState.PENDING, "requested_at": now, "attempts": 0, "deaths": 0}
    session.execute(
        insert_if_absent(session, ModelRow)
        .values([{"subject_id": subject_id, **fresh} for subject_id in sorted(subject_ids)])
        .on_conflict_do_nothing()
    )
    # A converter that is failing one of them right now fails its jobs too: wait for it, or make it wait.
    these = and_(ModelRow.subject_id.in_(subject_ids), ModelRow.precision == precision)
    session.execute(select(ModelRow.subject_id).where(these).order_by(ModelRow.subject_id).with_for_update())
    session.execute(
        update(ModelRow)
        .where(these, ModelRow.state.in_((ModelState.FAILED, ModelState.DROPPED)))
        .values(state=ModelState.PENDING, requested_at=now, deaths=0, error=None)  # `attempts` fence, and only grow
    )


def claim(session: Session, *, claim_s: float, now: datetime) -> Conversion | None:
    """Give the oldest pending subject to a converter, or one whose converter has let its claim run out."""
    eligible = (
        select(ModelRow.subject_id, ModelRow.precision)
        .where(
            or_(
                ModelRow.state == ModelState.PENDING,
                and_(ModelRow.state == ModelState.CONVERTING, ModelRow.claimed_until < now),
            )
        )
        .order_by(ModelRow.requested_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).cte("eligible")
    claimed = session.execute(
        update(ModelRow)
        .where(ModelRow.subject_id == eligible.c.subject_id, ModelRow.precision == eligible.c.precision)
        .values(
            state=ModelState.CONVERTING,
            claimed_until=now + timedelta(seconds=claim_s),
            attempts=ModelRow.attempts + 1,
        )
        .returning(ModelRow.subject_id, ModelRow.precision, ModelRow.attempts)
        .execution_options(synchronize_session=False)
    ).first()
    if claimed is None:
        return None
    document = session.get_one(SubjectRow, claimed.subject_id).document
    return Conversion(claimed.subject_id, claimed.precision, document, claimed.attempts)


def renew(session: Session, conversion: Conversion, *, claim_s: float, now: datetime) -> None:
    """The converter is still at it."""
    if (row := _owned(session, conversion)) is not None:
        row.claimed_until = now + timedelta(seconds=claim_s)


def store(session: Session, conversion: Conversion, *, content: bytes, conversion_s: float) -> None:
    if (row := _owned(session, conversion)) is not None:
        sha256 = model_files.sha256_of(content)
        model_files.store(session, sha256, content)
        row.state, row.sha256, row.conversion_s, row.error = ModelState.READY, sha256, conversion_s, None


def fail(session: Session, conversion: Conversion, *, error: str, now: datetime) -> None:
    """Give the subject up, and with it every job that waits for its model."""
    if (row := _owned(session, conversion)) is not None:
        row.state, row.error = ModelState.FAILED, error
        queue.fail_unconvertible(session, conversion.subject_id, precision=conversion.precision, error=error, now=now)


def postpone(session: Session, conversion: Conversion) -> None:
    """The converter's fault, not the subject's: another attempt."""
    if (row := _owned(session, conversion)) is not None:
        row.state = ModelState.PENDING


def count_death(session: Session, conversion: Conversion) -> int:
    """The converter's process came to its end on this subject. Returns how often one has, in whatever service.

    0 where somebody else has the subject by now.
    """
    row = _owned(session, conversion)
    if row is None:
        return 0
    row.deaths += 1
    return row.deaths


def _owned(session: Session, conversion: Conversion) -> ModelRow | None:
    """The row, if this claim still owns it: a converter that let its claim run out changes nothing."""
    row = session.get_one(ModelRow, (conversion.subject_id, conversion.precision), with_for_update=True)
    return row if row.state == ModelState.CONVERTING and row.attempts == conversion.attempt else None


def converted(session: Session, subject_ids: Iterable[str], *, precision: str) -> dict[str, Converted]:
    """Of these subjects, those that have their files."""
    rows = session.execute(_converted(), {LISTED: the_list(subject_ids), "precision": precision})
    return {row.id: Converted(read_subject(row.document), row.sha256) for row in rows}


def with_reference(session: Session, protocol_id: str) -> tuple[Protocol, str | None]:
    """A protocol that is known, with the hash of its reference operator's file; None while that is being converted."""
    row = session.execute(_with_reference(), {"protocol": protocol_id}).one()
    return read_protocol(row.document), row.sha256


@cache
def _converted() -> Select[*tuple[Any, ...]]:
    wanted = listed()
    found = wanted.join(SUBJECTS, SUBJECTS.c.id == wanted.c.value)
    ready = _ready(SUBJECTS.c.id, bindparam("precision"))
    return select(SUBJECTS.c.id, SUBJECTS.c.document, MODELS.c.sha256).select_from(found.join(MODELS, ready))


@cache
def _with_reference() -> Select[*tuple[Any, ...]]:
    ready = _ready(PROTOCOLS.c.reference_id, PROTOCOLS.c.precision)
    found = PROTOCOLS.outerjoin(MODELS, ready)
    return (
        select(PROTOCOLS.c.document, MODELS.c.sha256).select_from(found).where(PROTOCOLS.c.id == bindparam("protocol"))
    )


def _ready(subject_id: ColumnElement[str], precision: ColumnElement[str]) -> ColumnElement[bool]:
    return and_(MODELS.c.subject_id == subject_id, MODELS.c.precision == precision, MODELS.c.state == ModelState.READY)
