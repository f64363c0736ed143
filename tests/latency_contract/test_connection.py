"""The far end is a small real HTTP server that answers as it is told."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from latency_contract import connection as connection_module
from latency_contract.connection import NotThisService, ServiceConnection, ServiceRefused, ServiceUnreachable
from latency_contract.errors import ErrorBody


class Scripted(ThreadingHTTPServer):
    """Answers with the scripted (status, body) pairs in turn; the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, Any]] = []
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Scripted)
        self.server.seen.append(self.path)
        status, body = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def far_end() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


GOOD = {"error": "name", "detail": "sentence"}


def test_an_answer_is_validated(far_end: Scripted) -> None:
    far_end.script = [(200, GOOD)]
    with ServiceConnection(far_end.url) as connection:
        assert connection.ask("GET", "/x", ErrorBody) == ErrorBody(error="name", detail="sentence")


def test_the_services_own_fault_is_retried(far_end: Scripted) -> None:
    far_end.script = [(503, GOOD), (500, b"oops"), (200, GOOD)]
    with ServiceConnection(far_end.url) as connection:
        connection.ask("GET", "/x", ErrorBody)
    assert far_end.seen == ["/x"] * 3


def test_a_refusal_is_not_retried_and_keeps_its_sentence(far_end: Scripted) -> None:
    far_end.script = [(404, {"error": "UnknownDevice", "detail": "There is no device 'x'."})]
    with ServiceConnection(far_end.url) as connection, pytest.raises(ServiceRefused, match="There is no device") as e:
        connection.ask("GET", "/x", ErrorBody)
    assert (e.value.error, e.value.status) == ("UnknownDevice", 404)
    assert len(far_end.seen) == 1


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b"<html>"), (200, {"other": 1})])
def test_another_program_at_the_address_is_recognised(far_end: Scripted, status: int, body: Any) -> None:
    far_end.script = [(status, body)]
    with ServiceConnection(far_end.url) as connection, pytest.raises(NotThisService):
        connection.ask("GET", "/x", ErrorBody)


def test_nobody_at_the_address_is_said_when_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PATIENCE_S", 0.3)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with (
            ServiceConnection(url) as connection,
            pytest.raises(ServiceUnreachable, match=r"does not answer .* Is `padnas-service serve` running"),
        ):
            connection.request("GET", "/x")


@pytest.mark.parametrize("url", ["localhost", "ftp://host", "http://", "http://host:port"])
def test_a_text_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(NotThisService, match="is not an address"), ServiceConnection(url) as connection:
        connection.request("GET", "/x")
