"""The log: lines for people, or one JSON object a line for machines, each with what is known of the request.

    2026-01-01 12:00:00,000 INFO latency_service.request_log: POST /v1/leases request=77… status=200 serial=A1 jobs=[7]
    {"time": "2026-01-01T12:00:00+00:00", "level": "info", "logger": …, "message": …, "request": "77…", …}

A token never gets here in full: routes are logged as templates, and leases by `short`.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

SHOWN_OF_A_TOKEN = 8  # characters: enough to follow a lease through the log, of no use to a thief

Fact = str | int | float | list[int]
# One dictionary a request. An endpoint runs in another thread, with a copy of the context but the same dictionary.
_facts: ContextVar[dict[str, Fact] | None] = ContextVar("facts", default=None)


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def configure(log_format: LogFormat) -> None:
    """Everything that is logged, uvicorn's warnings included, goes to stderr in one format."""
    logging.basicConfig(level=logging.INFO, handlers=[handler(log_format, sys.stderr)], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def handler(log_format: LogFormat, stream: TextIO) -> logging.Handler:
    made = logging.StreamHandler(stream)
    made.setFormatter(_Json() if log_format == LogFormat.JSON else _Text())
    made.addFilter(_add_facts)
    return made


@contextmanager
def facts() -> Iterator[dict[str, Fact]]:
    """Inside, every line carries what `note` adds."""
    known: dict[str, Fact] = {}
    token = _facts.set(known)
    try:
        yield known
    finally:
        _facts.reset(token)


def note(**more: Fact) -> None:
    """Let every further line of this request say so; nothing outside of a request."""
    if (known := _facts.get()) is not None:
        known.update(more)


def short(secret: str) -> str:
    """The beginning of a token."""
    return f"{secret[:SHOWN_OF_A_TOKEN]}…" if len(secret) > SHOWN_OF_A_TOKEN else secret


def _add_facts(record: logging.LogRecord) -> bool:
    record.facts = dict(_facts.get() or {})
    return True


def _in_a_line(value: Fact) -> str:
    """A serial comes from the wire: a line break in it must not pass for a line of ours."""
    text = str(value)
    return text if text.isprintable() else repr(text)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - so logging calls it
        said = "".join(f" {name}={_in_a_line(value)}" for name, value in getattr(record, "facts", {}).items())
        return super().formatMessage(record) + said


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
