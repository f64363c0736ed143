"""Around every request: its id, one line in the log, its duration among the metrics, and the answer to our mistakes.

The id is the caller's `X-Request-ID` where that is sane, else a new one; the response names it. What goes as it should
all day long (health, metrics, an agent that finds no work) is logged at level DEBUG, which nobody sees.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latency_service import logs
from latency_service.metrics import Metrics

HEADER = "X-Request-ID"
SANE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
UNMATCHED = "unmatched"  # the route of paths that are none: a metric's labels must not be made up by callers
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
LEASES = "/v1/leases"
QUIET_ROUTES = {"/healthz", "/readyz", "/metrics"}
LONGEST_SEGMENT = 24  # of a path that is no route: what is longer may be a secret in the wrong place
CLIENT_GONE = 499  # nobody was left to answer
log = logging.getLogger(__name__)


class RequestLog:
    """ASGI middleware. `mistake` answers where an endpoint has raised what no handler knows."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, mistake: ASGIApp) -> None:
        self._app, self._metrics, self._mistake = app, metrics, mistake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get(HEADER, "")
        request_id = said if SANE_ID.fullmatch(said) else uuid.uuid4().hex
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        started = time.perf_counter()
        with logs.facts() as known:
            known["request"] = request_id
            try:
                await self._app(scope, receive, answer)
            except ClientDisconnect:
                pass  # in the middle of its body; nobody is left to answer
            except Exception:
                log.exception("a mistake of the service")
                if status is not None:
                    raise
                await self._mistake(scope, receive, answer)
            finally:
                self._finish(scope, CLIENT_GONE if status is None else status, time.perf_counter() - started)

    def _finish(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.request_s.labels(method, route, str(status)).observe(duration_s)
        if "token" in (parameters := scope.get("path_params") or {}):
            logs.note(lease=logs.short(parameters["token"]))
        if "serial" in parameters:
            logs.note(serial=parameters["serial"])
        if route == UNMATCHED:
            logs.note(path=_path(scope["path"]))
        logs.note(status=status, duration_ms=round(1000 * duration_s, 1))
        log.log(_level(route, status), "%s %s", method, route)


def _level(route: str, status: int) -> int:
    if status >= 500:
        return logging.WARNING
    quiet = (route in QUIET_ROUTES and status < 400) or (route == LEASES and status == 204)
    return logging.DEBUG if quiet else logging.INFO


def _path(path: str) -> str:
    return "/".join(part if len(part) <= LONGEST_SEGMENT else logs.short(part) for part in path.split("/"))
