import io
import json
import logging
from collections.abc import Iterator

import pytest

from latency_service import logs
from latency_service.logs import LogFormat


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own, without other handlers."""
    logger = logging.Logger("test")
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_a_line_of_json_carries_what_is_known_of_the_request(logger: logging.Logger) -> None:
    logger.addHandler(logs.handler(LogFormat.JSON, stream := io.StringIO()))
    with logs.facts():
        logs.note(request="77", jobs=[1, 2])
        logger.warning("a phone at %d °C\nand more", 51)
    logger.info("later")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "test", "a phone at 51 °C\nand more")
    assert (first["request"], first["jobs"]) == ("77", [1, 2])
    assert first["time"].endswith("+00:00")
    assert second.keys() == {"time", "level", "logger", "message"}


def test_a_line_of_json_carries_the_traceback(logger: logging.Logger) -> None:
    logger.addHandler(logs.handler(LogFormat.JSON, stream := io.StringIO()))
    try:
        raise KeyError("x")
    except KeyError:
        logger.exception("a mistake")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'x'" in json.loads(line)["traceback"]


def test_a_line_of_text_names_the_facts_and_stays_one_line(logger: logging.Logger) -> None:
    logger.addHandler(logs.handler(LogFormat.TEXT, stream := io.StringIO()))
    with logs.facts():
        logs.note(serial="A1\n2026 ERROR all phones burn", status=200)
        logger.info("GET /v1/devices")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"INFO test: GET /v1/devices serial='A1\n2026 ERROR all phones burn' status=200")


def test_outside_of_a_request_nothing_is_noted(logger: logging.Logger) -> None:
    logger.addHandler(logs.handler(LogFormat.JSON, stream := io.StringIO()))
    logs.note(serial="A1")
    logger.info("hello")
    assert "serial" not in json.loads(stream.getvalue())


def test_of_a_token_the_beginning_is_shown() -> None:
    assert logs.short("0123456789abcdef0123456789abcdef") == "01234567…"
    assert logs.short("01234567") == "01234567"
