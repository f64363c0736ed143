"""What endpoints are given: a session that commits once, the settings, the converter, the time, chance.

Sessions end before the response is sent (`scope="function"`), so that nobody is told of what is not yet stored.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from sqlalchemy.orm import Session

from latency_contract.canonical import Contract
from latency_contract.errors import ErrorBody
from latency_service.converter import Converter
from latency_service.database import Database
from latency_service.metrics import Metrics
from latency_service.settings import Settings

OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class Parts:
    """What one running service is made of."""

    database: Database
    settings: Settings
    converter: Converter | None  # None: another service on the database converts
    clock: Callable[[], datetime]
    random: Random
    local_agent_secret: str | None  # of the agent beside this process; other services need not know it
    metrics: Metrics


async def _parts(request: Request) -> Parts:  # no thread is woken for what does not wait
    parts: Parts = request.app.state.parts
    return parts


def _reading(parts: Annotated[Parts, Depends(_parts)]) -> Iterator[Session]:
    with parts.database.reading() as session:
        yield session


def _writing(parts: Annotated[Parts, Depends(_parts)]) -> Iterator[Session]:
    with parts.database.writing() as session:
        yield session


async def _octets(request: Request) -> bytes:
    return await request.body()


Service = Annotated[Parts, Depends(_parts)]
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]
Octets = Annotated[bytes, Depends(_octets)]  # a body that is a file; its limit is in access.py


def json_of(answer: Contract) -> Response:
    """What is valid already, for endpoints that are asked all day: FastAPI would check it again, in another thread."""
    return Response(answer.model_dump_json(), media_type="application/json")


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: the statuses under which an endpoint answers with an error body."""
    return {status: {"model": ErrorBody} for status in (*statuses, 422)}


def octets_in(description: str) -> dict[str, Any]:
    """OpenAPI: an endpoint that takes a file."""
    content = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "description": description, "content": content}}
