from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from latency_contract.operators import IBConv
from latency_service import conversion_queue, model_files
from latency_service.conversion_queue import Conversion
from latency_service.database import Database
from latency_service.models import ModelRow, ModelState
from latency_service.subjects import store_subjects
from tests.conftest import Clock, sha256

CLAIM_S = 15.0
Make = Callable[..., IBConv]


def request(database: Database, clock: Clock, *operators: IBConv) -> None:
    with database.writing() as session:
        store_subjects(session, operators)
        conversion_queue.request(session, [o.id for o in operators], precision="float32", now=clock())


def sha256s(session: Session, subject_id: str) -> dict[str, str]:
    found = conversion_queue.converted(session, [subject_id], precision="float32")
    return {subject_id: converted.sha256 for subject_id, converted in found.items()}


def claim(database: Database, clock: Clock) -> Conversion | None:
    with database.writing() as session:
        return conversion_queue.claim(session, claim_s=CLAIM_S, now=clock())


def claimed(database: Database, clock: Clock) -> Conversion:
    conversion = claim(database, clock)
    assert conversion is not None
    return conversion


def test_a_subject_is_converted_once_however_often_it_is_asked_for(
    database: Database, clock: Clock, operator: Make
) -> None:
    request(database, clock, operator())
    conversion = claimed(database, clock)
    request(database, clock, operator())
    assert claim(database, clock) is None
    with database.writing() as session:
        conversion_queue.store(session, conversion, content=b"model", conversion_s=0.1)
        assert sha256s(session, operator().id) == {operator().id: sha256(b"model")}
        assert model_files.content(session, sha256(b"model")) == b"model"
    request(database, clock, operator())
    assert claim(database, clock) is None


def test_the_oldest_is_converted_first(database: Database, clock: Clock, operator: Make) -> None:
    request(database, clock, operator(height=2))
    clock.advance(1)
    request(database, clock, operator(height=1))
    assert claimed(database, clock).subject_id == operator(height=2).id


def test_a_converter_that_does_not_come_back_loses_its_subject(
    database: Database, clock: Clock, operator: Make
) -> None:
    request(database, clock, operator())
    claimed(database, clock)
    clock.advance(CLAIM_S + 1)
    assert claimed(database, clock).attempt == 2


def test_a_converter_that_lost_its_subject_changes_nothing(database: Database, clock: Clock, operator: Make) -> None:
    request(database, clock, operator())
    stale = claimed(database, clock)
    clock.advance(CLAIM_S + 1)
    fresh = claimed(database, clock)
    with database.writing() as session:
        conversion_queue.store(session, fresh, content=b"model", conversion_s=0.1)
        conversion_queue.fail(session, stale, error="too slow", now=clock())
        conversion_queue.postpone(session, stale)
        conversion_queue.store(session, stale, content=b"another", conversion_s=0.1)
        conversion_queue.renew(session, stale, claim_s=CLAIM_S, now=clock())
        assert sha256s(session, operator().id) == {operator().id: sha256(b"model")}


def test_a_converter_that_lost_its_subject_does_not_fail_it_when_it_is_asked_for_again(
    database: Database, clock: Clock, operator: Make
) -> None:
    request(database, clock, operator())
    stale = claimed(database, clock)
    clock.advance(CLAIM_S + 1)
    with database.writing() as session:
        conversion_queue.fail(session, claimed_in(session, clock), error="no such kernel", now=clock())
    request(database, clock, operator())
    claimed(database, clock)
    with database.writing() as session:
        conversion_queue.fail(session, stale, error="too slow", now=clock())
        assert session.scalars(select(ModelRow.state)).one() == ModelState.CONVERTING


def test_deaths_on_a_subject_are_counted_whoever_dies(database: Database, clock: Clock, operator: Make) -> None:
    """Converters of several services die on it, or one that is started anew each time."""
    request(database, clock, operator())
    deaths = []
    for _ in range(3):
        conversion = claimed(database, clock)
        with database.writing() as session:
            deaths.append(conversion_queue.count_death(session, conversion))
            if len(deaths) < 3:
                conversion_queue.postpone(session, conversion)
            else:
                error = "the converter died on this model, deaths: 3"
                conversion_queue.fail(session, conversion, error=error, now=clock())
    assert deaths == [1, 2, 3]
    assert claim(database, clock) is None
    with database.reading() as session:
        row = session.scalars(select(ModelRow)).one()
        assert (row.state, row.error) == (ModelState.FAILED, "the converter died on this model, deaths: 3")
    request(database, clock, operator())
    with database.writing() as session:
        assert conversion_queue.count_death(session, claimed_in(session, clock)) == 1
        assert conversion_queue.count_death(session, conversion) == 0, "it is another's"


def test_a_converter_that_renews_its_claim_keeps_its_subject(database: Database, clock: Clock, operator: Make) -> None:
    request(database, clock, operator())
    conversion = claimed(database, clock)
    clock.advance(CLAIM_S - 1)
    with database.writing() as session:
        conversion_queue.renew(session, conversion, claim_s=CLAIM_S, now=clock())
    clock.advance(CLAIM_S - 1)
    assert claim(database, clock) is None


def test_a_failed_conversion_has_no_model_and_is_tried_again_when_asked_for(
    database: Database, clock: Clock, operator: Make
) -> None:
    request(database, clock, operator())
    with database.writing() as session:
        conversion_queue.fail(session, claimed_in(session, clock), error="no such kernel", now=clock())
        assert sha256s(session, operator().id) == {}
    assert claim(database, clock) is None
    request(database, clock, operator())
    assert claimed(database, clock).attempt == 2


def claimed_in(session: Session, clock: Clock) -> Conversion:
    conversion = conversion_queue.claim(session, claim_s=CLAIM_S, now=clock())
    assert conversion is not None
    return conversion
