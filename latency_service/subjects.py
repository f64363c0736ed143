"""Subjects and protocols as rows: stored the first time anyone mentions them, read back as contract types."""

from collections.abc import Iterable
from functools import lru_cache

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from latency_contract.canonical import canonical_json
from latency_contract.operators import Subject
from latency_contract.protocols import Protocol
from latency_service.errors import UnknownProtocol
from latency_service.models import Base, ProtocolRow, SubjectRow


def store_subjects(session: Session, subjects: Iterable[Subject]) -> None:
    """Store what is new, and lock all of them: what becomes of a subject is asked and decided by one at a time."""
    rows = {s.id: {"id": s.id, "kind": s.kind, "key": s.key, "document": canonical_json(s)} for s in subjects}
    in_order = [rows[subject_id] for subject_id in sorted(rows)]  # two batches would wait for each other otherwise
    session.execute(insert_if_absent(session, SubjectRow).values(in_order).on_conflict_do_nothing())
    lock_subjects(session, rows)


def lock_subjects(session: Session, subject_ids: Iterable[str]) -> None:
    """Until the transaction ends, nobody else queues, withdraws or finishes jobs of these subjects."""
    wanted = select(SubjectRow.id).where(SubjectRow.id.in_(sorted(set(subject_ids))))
    session.execute(wanted.order_by(SubjectRow.id).with_for_update(key_share=True))


def store_protocol(session: Session, protocol: Protocol) -> None:
    if session.get(ProtocolRow, protocol.id) is not None:
        return
    store_subjects(session, [protocol.reference])
    session.execute(
        insert_if_absent(session, ProtocolRow)
        .values(
            id=protocol.id,
            precision=protocol.precision,
            reference_id=protocol.reference.id,
            document=canonical_json(protocol),
        )
        .on_conflict_do_nothing()
    )


def load_protocol(session: Session, protocol_id: str) -> Protocol:
    """Raises UnknownProtocol where no device ever measured under it."""
    document = session.scalar(select(ProtocolRow.document).where(ProtocolRow.id == protocol_id))
    if document is None:
        known = session.scalars(select(ProtocolRow.id)).all()
        raise UnknownProtocol(f"No device measures under protocol {protocol_id}. Known: {', '.join(known) or 'none'}.")
    return read_protocol(document)


@lru_cache(maxsize=64)  # there are few, and none ever changes
def read_protocol(document: str) -> Protocol:
    return Protocol.model_validate_json(document)


def insert_if_absent(session: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """The dialect's own INSERT, which knows ON CONFLICT DO NOTHING."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
