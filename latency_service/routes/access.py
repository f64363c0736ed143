"""Who may call which endpoint with how large a body: one table, and the one place that holds requests to it.

Both are asked before a byte of the body is read, and the body is read no further than its limit. An endpoint without a
line in the table cannot be defined, so nobody forgets one.
"""

from base64 import b64decode
from collections.abc import Callable, Coroutine
from contextlib import suppress
from secrets import compare_digest
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.types import Message

from latency_contract.errors import ErrorBody
from latency_service import model_files, tokens, weights_file
from latency_service.errors import BodyTooLarge, WrongHost, WrongRole
from latency_service.routes.dependencies import Parts
from latency_service.settings import is_this_machine
from latency_service.tokens import ANYBODY, HOW_TO_CREATE, Caller, Role

MAX_JSON_BYTES = 16 * 2**20  # a thousand networks of 25 layers take half of it
MAX_REPORT_BYTES = 128 * 2**20  # 64 measurements of the fastest operators, every sample written out

LOCAL_AGENT = Caller("local-agent", Role.AGENT)


class Rule(NamedTuple):
    roles: frozenset[Role] | None  # beside admin; None: everybody, with or without a token
    max_body_bytes: int = MAX_JSON_BYTES
    in_browser: bool = False  # a page: the token may come as a password, which browsers ask people for


PUBLIC = Rule(None)
AGENT = Rule(frozenset({Role.AGENT}))
CLIENT = Rule(frozenset({Role.CLIENT}))
ADMIN = Rule(frozenset())
BOTH = Rule(frozenset({Role.AGENT, Role.CLIENT}))
# Nothing that changes anything may be a page: a browser sends a password along with whatever other sites make it ask.
PAGE = CLIENT._replace(in_browser=True)

RULES = {
    "GET /healthz": PUBLIC,
    "GET /readyz": PUBLIC,
    "GET /metrics": CLIENT,
    "GET /": PAGE,
    "GET /devices/{name:path}": PAGE,
    "GET /tables/{table_id}": PAGE,
    "GET /tables/{table_id}/versions/{version}": PAGE,
    "GET /measurements/{number}": PAGE,
    "GET /compare": PAGE,
    "GET /dashboard.css": PUBLIC,
    "GET /dashboard.js": PUBLIC,
    "GET /dashboard.svg": PUBLIC,
    "PUT /v1/searches/{search_id}": CLIENT,
    "GET /v1/devices": BOTH,
    "GET /v1/devices/{serial}": BOTH,
    "PUT /v1/devices/{serial}": AGENT,
    "POST /v1/devices/{serial}/faults": AGENT,
    "POST /v1/devices/{serial}/checks": AGENT,
    "DELETE /v1/devices/{serial}/quarantine": ADMIN,
    "GET /v1/devices/{device:path}/units": CLIENT,
    "POST /v1/leases": AGENT,
    "POST /v1/leases/{token}/renew": AGENT,
    "POST /v1/leases/{token}/report": AGENT._replace(max_body_bytes=MAX_REPORT_BYTES),
    "POST /v1/leases/{token}/release": AGENT,
    "GET /v1/models/{sha256}": AGENT,
    "PUT /v1/models/{sha256}": CLIENT._replace(max_body_bytes=model_files.MAX_FILE_BYTES),
    "POST /v1/conversions": CLIENT._replace(max_body_bytes=weights_file.MAX_BODY_BYTES),
    "POST /v1/latencies/query": CLIENT,
    "POST /v1/latencies/release": CLIENT,
    "GET /v1/devices/{device:path}/latencies/{key}": CLIENT,
    "GET /v1/measurements/{measurement_id}": CLIENT,
    "GET /v1/tables": CLIENT,
    "POST /v1/tables": CLIENT,
    "GET /v1/tables/{table_id}": CLIENT,
    "GET /v1/tables/{table_id}/versions/{version}": CLIENT,
    "POST /v1/tables/{table_id}/versions/{version}/calibrations": CLIENT,
    "GET /v1/tables/{table_id}/versions/{version}/calibrations": CLIENT,
    "POST /v1/tables/{table_id}/predictions": CLIENT,
}

# OpenAPI's word for it, and a field for the token at /docs. It refuses nobody.
BEARER = Security(HTTPBearer(auto_error=False, description="a token of `padnas-service token create`"))


class GuardedRoute(APIRoute):
    """An endpoint behind its rule."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        (method,) = options["methods"]
        rule = RULES.get(f"{method} {path}")
        assert rule is not None, f"who may {method} {path}? RULES in access.py has no line for it"
        self.rule = rule
        options["responses"] = {413: {"model": ErrorBody}} | (options.get("responses") or {})
        if self.rule.roles is not None:
            options["responses"] |= {401: {"model": ErrorBody}, 403: {"model": ErrorBody}}
            options["dependencies"] = [*(options.get("dependencies") or ()), BEARER]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer, rule = super().get_route_handler(), self.rule

        async def guarded(request: Request) -> Response:
            if rule.roles is not None:
                parts: Parts = request.app.state.parts
                caller = await run_in_threadpool(_admitted, parts, request.headers.get("Authorization"), rule)
                if caller is ANYBODY:
                    _refuse_other_names(request.headers.get("Host", ""))
                request.state.caller = caller
            return await answer(await _within(request, rule.max_body_bytes))

        return guarded


def _admitted(parts: Parts, header: str | None, rule: Rule) -> Caller:
    """Raises NoToken, InvalidToken or WrongRole."""
    caller, allowed = _caller(parts, _sent(header, in_browser=rule.in_browser)), (rule.roles or set()) | {Role.ADMIN}
    if caller.role not in allowed:
        wanted = " or ".join(sorted(allowed))
        raise WrongRole(
            f"The token '{caller.name}' has the role {caller.role}; this needs {wanted}. Use a token of that role."
        )
    return caller


def _refuse_other_names(host: str) -> None:
    """Where everybody on this machine may do everything, a page of some website must not.

    It can have its own name lead to 127.0.0.1 (DNS rebinding), and the browser takes the service for that website; but
    the name is in the Host header. Raises WrongHost.
    """
    name, _, port = host.rpartition(":")
    if not is_this_machine((name if port.isdecimal() else host).strip("[]")):
        raise WrongHost(
            f"Without tokens the service answers to http://127.0.0.1 and http://localhost, not to '{host}'. Use one of"
            f" these, or create a token: {HOW_TO_CREATE}"
        )


def _sent(header: str | None, *, in_browser: bool) -> str | None:
    """The token of an Authorization header. With it as password, the user's name may be anything (RFC 7617)."""
    scheme, _, said = (header or "").partition(" ")
    if scheme.lower() == "bearer":
        return said.strip() or None
    if in_browser and scheme.lower() == "basic":
        with suppress(ValueError):  # of which both bad Base64 and bad UTF-8 are kinds
            return b64decode(said.strip(), validate=True).decode().partition(":")[2].strip() or None
    return None


def _caller(parts: Parts, sent: str | None) -> Caller:
    own = parts.local_agent_secret
    if sent is not None and own is not None and compare_digest(sent.encode(), own.encode()):
        return LOCAL_AGENT
    every_s, now = parts.settings.token_use_s, parts.clock()
    with parts.database.reading() as session:
        caller = tokens.caller(session, sent, this_machine_alone=parts.settings.this_machine_alone)
        due = sent is not None and tokens.use_to_note(session, sent, every_s=every_s, now=now)
    if sent is not None and due:
        with parts.database.writing() as session:
            tokens.note_use(session, sent, every_s=every_s, now=now)
    return caller


async def _within(request: Request, limit_bytes: int) -> Request:
    """The request with its body in memory. Raises BodyTooLarge before more than the limit is."""
    too_large = BodyTooLarge(f"The body is longer than the {limit_bytes:,} bytes that are accepted here. Send less.")
    stated = request.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) > limit_bytes:
        raise too_large
    chunks, received_bytes = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        received_bytes += len(chunk)
        if received_bytes > limit_bytes:
            raise too_large
    read: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

    async def receive() -> Message:
        return read.pop() if read else await request.receive()

    return Request(request.scope, receive)


async def _who(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


Who = Annotated[Caller, Depends(_who)]
