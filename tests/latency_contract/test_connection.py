"""The far end is a small real HTTP server that answers as it is told."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latency_contract import connection as connection_module
from latency_contract.connection import (
    NotAllowed,
    NotThisService,
    ServiceConnection,
    ServiceRefused,
    ServiceUnreachable,
    UnusableToken,
)
from latency_contract.errors import ErrorBody


class Scripted(ThreadingHTTPServer):
    """Answers with the scripted (status, body) pairs in turn; the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, Any]] = []
        self.seen: list[str] = []
        self.authorizations: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Scripted)
        self.server.seen.append(self.path)
        self.server.authorizations.append(self.headers["Authorization"])
        status, body = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def environment_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PADNAS_TOKEN", "PADNAS_TOKEN_FILE", "PADNAS_TOKEN_OVER_HTTP"):
        monkeypatch.delenv(name, raising=False)


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


def test_who_is_sent_elsewhere_has_delivered_nothing(far_end: Scripted) -> None:
    """A proxy that asks for a password may do so."""
    far_end.script = [(302, b"")]
    with ServiceConnection(far_end.url) as connection, pytest.raises(NotThisService, match="with status 302"):
        connection.request("GET", "/x")


def test_the_services_own_fault_is_told_when_patience_is_over(
    far_end: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "PATIENCE_S", 0.3)
    far_end.script = [(503, {"error": "ConverterBusy", "detail": "TensorFlow cannot be imported. Install it."})] * 9
    with (
        ServiceConnection(far_end.url) as connection,
        pytest.raises(
            ServiceUnreachable, match=r"cannot answer \(status 503\): TensorFlow cannot be imported. Install"
        ),
    ):
        connection.request("GET", "/x")


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


@pytest.mark.parametrize(
    ("variable", "text", "sent"),
    [
        (None, None, None),
        ("padnas_one", None, "Bearer padnas_one"),
        (None, "padnas_two\n", "Bearer padnas_two"),
        ("padnas_one", "padnas_two", "Bearer padnas_one"),
        ("", "padnas_two", "Bearer padnas_two"),
        ("", None, None),
    ],
)
def test_the_token_is_the_environments_or_that_of_the_file_it_names(
    far_end: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str | None,
    text: str | None,
    sent: str | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv("PADNAS_TOKEN", variable)
    if text is not None:
        (tmp_path / "token").write_text(text)
        monkeypatch.setenv("PADNAS_TOKEN_FILE", str(tmp_path / "token"))
    far_end.script = [(200, GOOD)]
    with ServiceConnection(far_end.url) as connection:
        connection.ask("GET", "/x", ErrorBody)
    assert far_end.authorizations == [sent]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"The token file .*/token cannot be read: No such file or directory\. Mend PADNAS_TOKEN_FILE"),
        (b"\n", r"There is no token in the file .*/token: it is empty"),
        (b"secret one\nsecret two\n", r"There is no token in the file .*/token: a token is one line"),
        ("gehéim".encode(), r"There is no token in the file .*/token: it is no plain text"),
    ],
)
def test_a_file_that_holds_no_token_is_a_sentence_that_does_not_quote_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    monkeypatch.setenv("PADNAS_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(UnusableToken, match=sentence) as refused:
        ServiceConnection("http://127.0.0.1:1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("trusted", ["", "no", "yes"])
@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://farm.example", True),
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
        ("http://farm.example", False),
        ("http://127.0.0.1.farm.example:8000", False),
    ],
)
def test_a_token_goes_to_another_host_encrypted_or_where_its_owner_says_so(
    monkeypatch: pytest.MonkeyPatch, url: str, safe: bool, trusted: str
) -> None:
    monkeypatch.setenv("PADNAS_TOKEN", "padnas_secret")
    monkeypatch.setenv("PADNAS_TOKEN_OVER_HTTP", trusted)
    allowed = safe or trusted == "yes"
    expected = nullcontext() if allowed else pytest.raises(UnusableToken, match=r"Use https://, or set PADNAS_TOKEN_O")
    with expected as refused:
        ServiceConnection(url).close()
    assert "secret" not in str(refused)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_not_tried_again(far_end: Scripted, status: int) -> None:
    far_end.script = [(status, GOOD)]
    with ServiceConnection(far_end.url) as connection, pytest.raises(NotAllowed, match="sentence"):
        connection.ask("GET", "/x", ErrorBody)
    assert len(far_end.seen) == 1


def test_a_proxy_that_cannot_be_used_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(NotThisService, match=r"cannot be asked through the proxy of the environment: .*socksio"):
        ServiceConnection("http://farm.example")
