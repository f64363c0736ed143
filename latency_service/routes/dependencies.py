"""What endpoints are given: a session that commits once, the settings, the converter, the time, chance.

Sessions end before the response is sent (`scope="function"`), so that nobody is told of what is not yet stored.
"""

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from latency_contract.errors import ErrorBody
from latency_service.converter import Converter
from latency_service.database import Database
from latency_service.errors import BodyTooLarge
from latency_service.metrics import Metrics
from latency_service.settings import Settings

OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class Parts:
    """What one running service is made of."""

    database: Database
    settings: Settings
    converter: Converter
    clock: Callable[[], datetime]
    random: Random
    metrics: Metrics


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _reading(parts: Annotated[Parts, Depends(_parts)]) -> Iterator[Session]:
    with parts.database.reading() as session:
        yield session


def _writing(parts: Annotated[Parts, Depends(_parts)]) -> Iterator[Session]:
    with parts.database.writing() as session:
        yield session


Service = Annotated[Parts, Depends(_parts)]
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: the statuses under which an endpoint answers with an error body."""
    return {status: {"model": ErrorBody} for status in (*statuses, 422)}


def body_up_to(limit_bytes: int) -> Callable[[Request], Coroutine[Any, Any, bytes]]:
    """The body of a request as it is. Raises BodyTooLarge before more than the limit is in memory."""

    async def read(request: Request) -> bytes:
        chunks, received_bytes = [], 0
        async for chunk in request.stream():
            chunks.append(chunk)
            received_bytes += len(chunk)
            if received_bytes > limit_bytes:
                raise BodyTooLarge(f"The body is longer than the {limit_bytes:,} bytes that are accepted here.")
        return b"".join(chunks)

    return read


def octets_in(description: str) -> dict[str, Any]:
    """OpenAPI: an endpoint that takes a file."""
    content = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "description": description, "content": content}}
