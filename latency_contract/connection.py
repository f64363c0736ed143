"""The wire between agent or client and the service: HTTP with retries, and refusals as exceptions.

ServiceError
├── ServiceUnreachable    no answer, or one that asks to come back later; was retried
├── ServiceRefused        an answer with an error body; trying again would not help
│   └── NotAllowed        the token is missing, not valid, or not for this
├── NotThisService        something else answers at this address, or nothing can be asked there
└── UnusableToken         the environment's token is none, or would travel where others can read it
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import stamina
from pydantic import BaseModel, ValidationError

from latency_contract.errors import ErrorBody

TIMEOUT_S = 30.0  # of one request
THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
PATIENCE_S = 15.0  # with a service that does not answer

TOKEN = re.compile(r"[\w.~+/=-]{1,200}", re.ASCII)  # what may stand behind `Bearer` (RFC 6750)

logging.getLogger("stamina").setLevel(logging.ERROR)  # what was retried in vain is said by the exception

Answer = TypeVar("Answer", bound=BaseModel)


class ServiceError(Exception):
    """The service did not do what it was asked; the text is a sentence for people."""


class ServiceUnreachable(ServiceError):
    pass


class ServiceRefused(ServiceError):
    def __init__(self, error: str, detail: str, *, status: int) -> None:
        super().__init__(detail)
        self.error = error
        self.status = status


class NotAllowed(ServiceRefused):
    pass


class NotThisService(ServiceError):
    pass


class UnusableToken(ServiceError):
    pass


def token_of_environment() -> str | None:
    """PADNAS_TOKEN, or what the file says that PADNAS_TOKEN_FILE names. Never an argument, which everybody can read.

    Raises UnusableToken where that is no token.
    """
    source, text = "PADNAS_TOKEN", os.environ.get("PADNAS_TOKEN", "")
    if not text and (path := os.environ.get("PADNAS_TOKEN_FILE")):
        source = f"the file {path}"
        try:
            text = Path(path).read_text(encoding="ascii")
        except OSError as error:
            raise UnusableToken(
                f"The token file {path} cannot be read: {error.strerror}. Mend PADNAS_TOKEN_FILE."
            ) from error
        except UnicodeDecodeError as error:
            raise UnusableToken(f"There is no token in {source}: it is no plain text.") from error
        if not text.strip():
            raise UnusableToken(f"There is no token in {source}: it is empty.")
    if not text.strip():
        return None
    if not TOKEN.fullmatch(text.strip()):
        raise UnusableToken(f"There is no token in {source}: a token is one line of letters, digits and signs.")
    return text.strip()


class ServiceConnection:
    """A connection to one service.

    A request that gets no answer is sent again after about 0.1 s, 0.2 s, 0.4 s … (at most 5 s apart, with jitter)
    until PATIENCE_S is over. Every endpoint may be asked twice: a report counts once, and a lease whose answer was lost
    on the way runs out, at the price of one attempt.

    The environment's token is sent with every request: over https to any host, over http to this machine alone, unless
    PADNAS_TOKEN_OVER_HTTP says that the network between is trusted.
    """

    def __init__(self, base_url: str) -> None:
        """Raises NotThisService for a text that is no address, UnusableToken for a token that cannot be sent there."""
        self.base_url = base_url.rstrip("/")
        try:
            url = httpx.URL(self.base_url)
            if url.scheme not in ("http", "https") or not url.host:
                raise httpx.InvalidURL("it does not begin with http://HOST")
        except httpx.InvalidURL as error:
            raise NotThisService(f"'{base_url}' is not an address: {error}. Use http://HOST:PORT.") from error
        # A proxy of the environment is for other hosts than this machine.
        trust_env = url.host not in THIS_MACHINE
        try:
            self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=trust_env, auth=_authorization(url))
        except ImportError as error:
            raise NotThisService(f"{base_url} cannot be asked through the proxy of the environment: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, body: BaseModel | None = None, **options: Any) -> httpx.Response:
        """Send, retry what may be retried, and return the service's answer, if it is no refusal.

        Raises:
            ServiceUnreachable: no answer until patience ran out.
            ServiceRefused: the service answered with an error body.
            NotThisService: the answer is not this service's.
        """
        if body is not None:
            options["content"] = body.model_dump_json()
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        for attempt in stamina.retry_context(
            on=ServiceUnreachable, attempts=None, timeout=PATIENCE_S, wait_initial=0.1, wait_max=5.0
        ):
            with attempt:
                return self._send(method, path, **options)
        raise AssertionError("the retry loop returns or raises")

    def ask(
        self, method: str, path: str, answer: type[Answer], *, body: BaseModel | None = None, **options: Any
    ) -> Answer:
        """`request`, with the JSON of the response as an `answer`."""
        response = self.request(method, path, body=body, **options)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise NotThisService(
                f"{self.base_url}{path} answered something that is not a {answer.__name__}:"
                " are client and service of the same version?"
            ) from error

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServiceUnreachable(
                f"The service at {self.base_url} does not answer ({error or type(error).__name__})."
                " Is `padnas-service serve` running there?"
            ) from error
        status = response.status_code
        if status < 300 or status == 304:
            return response
        try:
            body = ErrorBody.model_validate_json(response.content)
        except ValidationError as error:
            if status >= 500:  # of a proxy, perhaps
                raise ServiceUnreachable(f"The service at {self.base_url} cannot answer (status {status}).") from error
            raise NotThisService(
                f"{self.base_url}{path} answered with status {status} and no explanation."
                " Is this the address of a latency service?"
            ) from error
        if status >= 500:  # the service's own fault, which may pass
            raise ServiceUnreachable(f"The service at {self.base_url} cannot answer (status {status}): {body.detail}")
        refusal = NotAllowed if status in (401, 403) else ServiceRefused
        raise refusal(body.error, body.detail, status=status)


def _authorization(url: httpx.URL) -> Callable[[httpx.Request], httpx.Request] | None:
    """How requests to this address get the token; None where there is none."""
    token = token_of_environment()
    if token is None:
        return None
    if url.scheme != "https" and url.host not in THIS_MACHINE and os.environ.get("PADNAS_TOKEN_OVER_HTTP") != "yes":
        raise UnusableToken(
            f"The token is not sent to {url} over http, where others on the way can read it. Use https://, or set"
            " PADNAS_TOKEN_OVER_HTTP=yes if you trust the network between."
        )

    def authorize(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize
