"""The converter's thread and its process, which is the real one with TensorFlow."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
from sqlalchemy import select, text, update

from latency_contract.canonical import canonical_json
from latency_contract.operators import IBConv, Network
from latency_service import conversion_queue
from latency_service.app import utc_now
from latency_service.converter import MAX_WAITING, Converter
from latency_service.database import Database
from latency_service.errors import ConversionFailed, ConverterBusy
from latency_service.metrics import Metrics
from latency_service.models import ModelRow, ModelState, SubjectRow
from latency_service.settings import Settings
from latency_service.subjects import store_subjects
from latency_service.tflite_converter import convert, random_weights
from latency_service.weights_file import TrainedNetwork

Make = Callable[..., IBConv]
PATIENCE_S = 60.0
whatever_the_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # TensorFlow takes seconds


@pytest.fixture
def converter(database: Database) -> Iterator[Converter]:
    converter = Converter(database, settings=Settings(), clock=utc_now, metrics=Metrics())
    converter.start()
    yield converter
    converter.stop()


def request(database: Database, *operators: IBConv, precision: str = "float32") -> None:
    with database.writing() as session:
        store_subjects(session, operators)
        conversion_queue.request(session, [o.id for o in operators], precision=precision, now=utc_now())


def wait_for(database: Database, state: ModelState) -> ModelRow:
    """The one model, once it is in that state."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with database.reading() as session:
            row = session.scalars(select(ModelRow)).one()
            if row.state == state:
                return row
        time.sleep(0.02)
    raise AssertionError(f"the model is {row.state}, not {state}: {row.error}")


def test_what_is_queued_is_converted(converter: Converter, database: Database, operator: Make) -> None:
    request(database, operator())
    converter.wake()
    assert wait_for(database, ModelState.READY).sha256 is not None
    assert converter.warm


def test_a_killed_converter_is_replaced_and_the_subject_converted(database: Database, operator: Make) -> None:
    others = set(tensorflow_processes())
    converter = Converter(database, settings=Settings(), clock=utc_now, metrics=Metrics())
    converter.start()
    request(database, operator())
    wait_for(database, ModelState.CONVERTING)
    (process,) = set(tensorflow_processes()) - others
    process.kill()
    assert wait_for(database, ModelState.READY).attempts == 2
    converter.stop()


@whatever_the_database
def test_a_database_that_is_away_while_a_subject_is_converted_is_not_the_subjects_fault(
    database: Database, operator: Make
) -> None:
    """Its claim is to be renewed ten times a second."""
    converter = Converter(
        database, settings=replace(Settings(), conversion_claim_s=0.3), clock=utc_now, metrics=(metrics := Metrics())
    )
    converter.start()
    request(database, operator())
    wait_for(database, ModelState.CONVERTING)  # TensorFlow is still being imported
    rename = "ALTER TABLE {} RENAME TO {}".format
    with database.writing() as session:
        session.execute(text(rename("models", "elsewhere")))
    until(lambda: b"padnas_database_errors_total 0.0" not in metrics.page())
    with database.writing() as session:
        session.execute(text(rename("elsewhere", "models")))
    assert wait_for(database, ModelState.READY).attempts == 1
    converter.stop()


ONE_DEATH = Settings(max_conversion_attempts=1)


@whatever_the_database
def test_a_subject_is_not_blamed_for_a_death_before_it_was_begun(database: Database, operator: Make) -> None:
    """What is oldest is claimed at once, and TensorFlow takes seconds to be imported."""
    others = set(tensorflow_processes())
    converter = Converter(database, settings=ONE_DEATH, clock=utc_now, metrics=Metrics())
    converter.start()
    request(database, operator())
    wait_for(database, ModelState.CONVERTING)
    (process,) = set(tensorflow_processes()) - others
    assert not converter.warm
    process.kill()
    assert wait_for(database, ModelState.READY).error is None
    converter.stop()


@whatever_the_database
def test_a_subject_that_takes_the_process_down_is_given_up(database: Database, operator: Make) -> None:
    others = set(tensorflow_processes())
    converter = Converter(database, settings=ONE_DEATH, clock=utc_now, metrics=Metrics())
    converter.start()
    until(lambda: converter.warm)
    (process,) = set(tensorflow_processes()) - others
    process.suspend()
    request(database, operator())
    wait_for(database, ModelState.CONVERTING)
    process.kill()
    assert wait_for(database, ModelState.FAILED).error == "the converter died on this model, deaths: 1"
    converter.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tensorflow_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


@whatever_the_database
@pytest.mark.usefixtures("converter")
def test_a_subject_that_cannot_be_converted_fails_with_a_sentence(database: Database, operator: Make) -> None:
    request(database, operator(), precision="int8")
    assert wait_for(database, ModelState.FAILED).error == "Precision 'int8' cannot be converted yet; use float32."


@whatever_the_database
@pytest.mark.usefixtures("converter")
def test_a_subject_that_cannot_even_be_read_fails_and_the_next_one_is_converted(
    database: Database, operator: Make
) -> None:
    """A row from another version of the program."""
    with database.writing() as session:
        session.add(SubjectRow(id=operator().id, kind="ibconv", key="x", document='{"kind": "unheard-of"}'))
        session.flush()
        conversion_queue.request(session, [operator().id], precision="float32", now=utc_now())
    assert str(wait_for(database, ModelState.FAILED).error).startswith("the converter failed: ValidationError")
    with database.writing() as session:
        session.execute(update(SubjectRow).values(document=canonical_json(operator())))
    request(database, operator())
    wait_for(database, ModelState.READY)


def test_stopping_gives_a_conversion_under_way_back(database: Database, operator: Make) -> None:
    converter = Converter(database, settings=Settings(), clock=utc_now, metrics=Metrics())
    converter.start()
    request(database, operator())
    wait_for(database, ModelState.CONVERTING)  # TensorFlow is still being imported
    converter.stop()
    wait_for(database, ModelState.PENDING)


@whatever_the_database
def test_stopping_gives_a_conversion_back_that_had_not_begun(database: Database, operator: Make) -> None:
    converter = Converter(database, settings=Settings(), clock=utc_now, metrics=Metrics())
    for _ in range(3):  # one runs and two wait for the process, the next one for the pool
        converter._pool.submit(time.sleep, PATIENCE_S)
    converter.start()
    request(database, operator())
    wait_for(database, ModelState.CONVERTING)
    converter.stop()
    wait_for(database, ModelState.PENDING)


def trained(operator: IBConv) -> TrainedNetwork:
    network = Network(operators=(operator,))
    return TrainedNetwork(network, random_weights(network))


@whatever_the_database
def test_a_network_with_weights_comes_before_what_is_queued(
    converter: Converter, database: Database, operator: Make
) -> None:
    request(database, *(operator(height=n) for n in range(1, 30)))
    model = converter.convert(trained(operator()))
    assert model == convert(Network(operators=(operator(),)), trained(operator()).weights)
    with database.reading() as session:
        assert session.scalars(select(ModelRow).where(ModelRow.state == ModelState.PENDING)).first() is not None


@whatever_the_database
def test_a_network_that_tensorflow_refuses_is_a_sentence_and_harms_nothing(
    converter: Converter, database: Database, operator: Make
) -> None:
    wrong = TrainedNetwork(Network(operators=(operator(),)), trained(operator(in_channels=16)).weights)
    with pytest.raises(ConversionFailed, match="TensorFlow cannot convert Network_1"):
        converter.convert(wrong)
    request(database, operator())
    assert wait_for(database, ModelState.READY).attempts == 1


@whatever_the_database
def test_a_process_that_died_is_replaced_for_a_network_with_weights(
    converter: Converter, database: Database, operator: Make
) -> None:
    converter.convert(trained(operator()))
    (process,) = (converter._pool._processes or {}).values()
    process.kill()
    assert converter.convert(trained(operator()))[4:8] == b"TFL3"
    request(database, operator())
    assert wait_for(database, ModelState.READY).attempts == 1


@whatever_the_database
def test_a_network_that_takes_too_long_is_a_sentence_and_the_queue_goes_on(database: Database, operator: Make) -> None:
    converter = Converter(
        database, settings=replace(Settings(), conversion_timeout_s=0.01), clock=utc_now, metrics=Metrics()
    )
    converter.start()
    with pytest.raises(ConversionFailed, match=r"Network_1_\w+ was not converted within 0.01 s"):
        converter.convert(trained(operator()))
    converter._settings = Settings()
    request(database, operator())
    assert wait_for(database, ModelState.READY).attempts == 1
    converter.stop()


@whatever_the_database
def test_more_than_a_few_in_line_are_sent_away(database: Database, operator: Make) -> None:
    converter = Converter(database, settings=Settings(), clock=utc_now, metrics=Metrics())
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(converter.convert, trained(operator())) for _ in range(MAX_WAITING)]
        while not converter._line.full():
            time.sleep(0.01)
        with pytest.raises(ConverterBusy, match="4 networks wait for the converter; try again in a moment"):
            converter.convert(trained(operator()))
        converter.start()
        assert len({one.result() for one in waiting}) == 1
    converter.stop()


def test_who_waits_when_the_converter_stops_is_told_so(database: Database, operator: Make) -> None:
    converter = Converter(database, settings=Settings(), clock=utc_now, metrics=Metrics())
    converter.start()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(converter.convert, trained(operator()))  # TensorFlow is still being imported
        converter.stop()
        with pytest.raises(ConverterBusy, match="being stopped"):
            waiting.result()
    with pytest.raises(ConverterBusy, match="being stopped"):
        converter.convert(trained(operator()))
