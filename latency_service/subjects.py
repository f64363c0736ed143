"""Subjects and protocols as rows: stored the first time anyone mentions them, read back as contract types.

What a text means never changes, so what was read once is remembered: checking and hashing an operator takes longer than
finding its latency. Nothing else is remembered in a process; its replicas would not know.
"""

import json
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Select, Text, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.sql.selectable import TableValuedAlias

from latency_contract.canonical import canonical_json
from latency_contract.operators import Subject, subject_adapter
from latency_contract.protocols import Protocol
from latency_service.errors import UnknownProtocol
from latency_service.models import Base, ProtocolRow, SubjectRow

REMEMBERED = 4096  # operators of several spaces, some kilobytes each
LONGEST_REMEMBERED = 1000  # characters; a network may have a hundred times as many
LISTED = "listed"  # a parameter: many texts as one


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
    document = session.execute(_protocol_document(), {"protocol": protocol_id}).scalar()
    if document is None:
        known = session.scalars(select(ProtocolRow.id)).all()
        raise UnknownProtocol(f"No device measures under protocol {protocol_id}. Known: {', '.join(known) or 'none'}.")
    return read_protocol(document)


@cache
def _protocol_document() -> Select[str]:
    protocols = ProtocolRow.metadata.tables[ProtocolRow.__tablename__]
    return select(protocols.c.document).where(protocols.c.id == bindparam("protocol"))


@lru_cache(maxsize=64)  # there are few, and none ever changes
def read_protocol(document: str) -> Protocol:
    return Protocol.model_validate_json(document)


def insert_if_absent(session: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """The dialect's own INSERT, which knows ON CONFLICT DO NOTHING."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def read_subject(document: str) -> Subject:
    """Raises ValidationError."""
    return _read_short(document) if len(document) <= LONGEST_REMEMBERED else subject_adapter.validate_json(document)


@lru_cache(maxsize=REMEMBERED)
def _read_short(document: str) -> Subject:
    return subject_adapter.validate_json(document)


# With a place for each of three hundred subjects, a statement is written, read and planned anew for every number of
# them. Both databases read a list as JSON.


def the_list(texts: Iterable[str]) -> str:
    """The value of the parameter LISTED."""
    return json.dumps(list(texts))


def listed() -> TableValuedAlias:
    """Texts of the parameter LISTED, as rows of one column `value`."""
    return _each(bindparam(LISTED, type_=Text)).table_valued("value", name=LISTED)


class _each(GenericFunction[Any]):  # noqa: N801 - as SQLAlchemy names functions
    inherit_cache = True


@compiles(_each, "sqlite")
def _each_of_sqlite(element: _each, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_each, "postgresql")
def _each_of_postgresql(element: _each, compiler: SQLCompiler, **options: Any) -> str:
    return f"jsonb_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS JSONB))"
