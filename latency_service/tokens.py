"""Tokens: who may use the service, and as what.

A token is 256 random bits, shown once to whoever creates it. What is stored is its SHA-256: a slow hash protects words
that people think of, which can be guessed; of 2^256 there is nothing to guess, and every request pays for the hash.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from latency_service.errors import InvalidToken, NoToken
from latency_service.models import MAX_TOKEN_NAME, TokenRow
from latency_service.subjects import insert_if_absent

MARK = "padnas_"  # by which people and programs that search for leaked secrets know what it is
NAME = re.compile(rf"[\w.:-]{{1,{MAX_TOKEN_NAME}}}")
HOW_TO_SEND = "Put it into the environment as PADNAS_TOKEN, or into a file that PADNAS_TOKEN_FILE names."
ANY_TOKEN = select(exists().where(TokenRow.sha256.is_not(None)))  # made once: every request asks it
HOW_TO_CREATE = "padnas-service token create --role client --name NAME"


class Role(StrEnum):
    AGENT = "agent"  # measures: leases, reports, models
    CLIENT = "client"  # wants latencies: questions, tables, measurements, models of its own, conversions
    ADMIN = "admin"  # everything


class Caller(NamedTuple):
    """Who sent a request."""

    name: str  # of the token; empty where there are no tokens
    role: Role


ANYBODY = Caller("", Role.ADMIN)  # on this machine, as long as there are no tokens


def new_secret() -> str:
    return MARK + secrets.token_urlsafe(32)


def create(session: Session, *, name: str, role: Role, now: datetime) -> str:
    """A new token, which cannot be shown again.

    Raises:
        ValueError: a name that is none, or that of a valid token.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' cannot be a token's name. Use 1 to {MAX_TOKEN_NAME} letters, digits and the signs . : _ -"
        )
    secret = new_secret()
    created = session.execute(
        insert_if_absent(session, TokenRow)
        .values(sha256=_sha256(secret), name=name, role=role, created_at=now)
        .on_conflict_do_nothing()
        .returning(TokenRow.sha256)
    ).first()
    if created is None:
        raise ValueError(
            f"There is a token '{name}' already. Choose another name, or first run: padnas-service token revoke {name}"
        )
    return secret


def revoke(session: Session, name: str, *, now: datetime) -> None:
    """From now on the token is refused. Raises ValueError where no valid one has the name."""
    revoked = session.execute(
        update(TokenRow)
        .where(TokenRow.name == name, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(TokenRow.sha256)
    ).first()
    if revoked is None:
        names = ", ".join(row.name for row in valid(session))
        raise ValueError(f"There is no valid token '{name}'. Valid are: {names or 'none'}.")


def valid(session: Session) -> Sequence[TokenRow]:
    """Every token that is not revoked, by name."""
    return session.scalars(select(TokenRow).where(TokenRow.revoked_at.is_(None)).order_by(TokenRow.name)).all()


def needed(session: Session) -> bool:
    """Whether a token was ever created. Revoking the last one must not open the service to everybody."""
    return bool(session.scalar(ANY_TOKEN))


def caller(session: Session, secret: str | None, *, this_machine_alone: bool) -> Caller:
    """Whose token this is.

    Raises:
        NoToken: none was sent where one is needed.
        InvalidToken: it is not known, or revoked.
    """
    row = None if secret is None else session.get(TokenRow, _sha256(secret))
    if row is not None and row.revoked_at is None:
        return Caller(row.name, Role(row.role))
    if row is not None:
        raise InvalidToken(f"The token '{row.name}' was revoked. Ask whoever runs this service for a new one.")
    if this_machine_alone and not needed(session):
        return ANYBODY
    if secret is None:
        raise NoToken(f"A token is needed here. {HOW_TO_SEND} Whoever runs this service creates one: {HOW_TO_CREATE}")
    raise InvalidToken(
        f"This token is not known here. Is it of another service? Whoever runs this one creates one: {HOW_TO_CREATE}"
    )


def use_to_note(session: Session, secret: str, *, every_s: float, now: datetime) -> bool:
    """Whether the last use that is written down is older than that. Reads alone."""
    row = session.get(TokenRow, _sha256(secret))
    return row is not None and (row.last_used_at is None or row.last_used_at <= now - timedelta(seconds=every_s))


def note_use(session: Session, secret: str, *, every_s: float, now: datetime) -> None:
    """Of many who note it at once, one writes."""
    due = or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at <= now - timedelta(seconds=every_s))
    session.execute(update(TokenRow).where(TokenRow.sha256 == _sha256(secret), due).values(last_used_at=now))


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
