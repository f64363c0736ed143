from collections.abc import Iterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from latency_service import tokens
from latency_service.database import Database
from latency_service.errors import InvalidToken, NoToken
from latency_service.models import TokenRow
from latency_service.tokens import ANYBODY, Caller, Role
from tests.conftest import Clock


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.writing() as session:
        yield session


def caller(session: Session, secret: str | None) -> Caller:
    return tokens.caller(session, secret, this_machine_alone=True)


def test_a_token_says_whose_it_is(session: Session, clock: Clock) -> None:
    secrets = {role: tokens.create(session, name=f"the-{role}", role=role, now=clock()) for role in Role}
    for role, secret in secrets.items():
        assert caller(session, secret) == Caller(f"the-{role}", role)


def test_tokens_are_long_and_never_the_same(session: Session, clock: Clock) -> None:
    made = {tokens.create(session, name=f"t{number}", role=Role.AGENT, now=clock()) for number in range(20)}
    assert len(made) == 20
    assert {len(secret) for secret in made} == {len("padnas_") + 43}  # 256 bits in steps of 6


def test_without_any_token_everybody_on_this_machine_is_served_and_nobody_else(session: Session) -> None:
    assert caller(session, None) == ANYBODY
    assert caller(session, "padnas_of-another-service") == ANYBODY
    with pytest.raises(NoToken):
        tokens.caller(session, None, this_machine_alone=False)


def test_from_the_first_token_on_one_is_needed_also_on_this_machine(session: Session, clock: Clock) -> None:
    tokens.create(session, name="hub", role=Role.AGENT, now=clock())
    with pytest.raises(NoToken, match=r"PADNAS_TOKEN.* padnas-service token create --role client --name NAME"):
        caller(session, None)
    with pytest.raises(InvalidToken, match="not known here"):
        caller(session, "padnas_guessed")


def test_revoking_the_last_token_does_not_open_the_service(session: Session, clock: Clock) -> None:
    secret = tokens.create(session, name="hub", role=Role.AGENT, now=clock())
    tokens.revoke(session, "hub", now=clock())
    with pytest.raises(InvalidToken, match="The token 'hub' was revoked"):
        caller(session, secret)
    with pytest.raises(NoToken):
        caller(session, None)


def test_a_name_is_given_anew_once_it_is_revoked(session: Session, clock: Clock) -> None:
    first = tokens.create(session, name="ana", role=Role.CLIENT, now=clock())
    with pytest.raises(ValueError, match=r"There is a token 'ana' already.*padnas-service token revoke ana"):
        tokens.create(session, name="ana", role=Role.ADMIN, now=clock())
    tokens.revoke(session, "ana", now=clock())
    second = tokens.create(session, name="ana", role=Role.ADMIN, now=clock())
    assert caller(session, second) == Caller("ana", Role.ADMIN)
    with pytest.raises(InvalidToken):
        caller(session, first)
    assert [row.role for row in tokens.valid(session)] == ["admin"]
    with pytest.raises(ValueError, match="There is no valid token 'bob'"):
        tokens.revoke(session, "bob", now=clock())


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä" * 51, "x\n"])
def test_a_name_that_would_confuse_people_or_the_queue_is_refused(session: Session, clock: Clock, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a token's name"):
        tokens.create(session, name=name, role=Role.CLIENT, now=clock())
    assert session.scalar(select(func.count()).select_from(TokenRow)) == 0


def test_its_use_is_written_down_once_a_minute_at_most(session: Session, clock: Clock) -> None:
    secret = tokens.create(session, name="ana", role=Role.CLIENT, now=clock())
    used, noted = [], []
    for _ in range(9):  # every 20 seconds
        if tokens.use_to_note(session, secret, every_s=60.0, now=clock()):
            tokens.note_use(session, secret, every_s=60.0, now=clock())
            noted.append(clock())
        tokens.note_use(session, secret, every_s=60.0, now=clock())  # somebody else, who saw the row as it was
        session.expire_all()
        used.append(tokens.valid(session)[0].last_used_at)
        clock.advance(20)
    assert used == [noted[number // 3] for number in range(9)]
    assert len(noted) == 3
