"""Who may call what, with how much: every endpoint of a live service that has tokens, on both databases."""

import asyncio
import http.client
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.routing import APIRouter, iter_route_contexts
from starlette.requests import Request

from latency_contract.connection import NotAllowed, ServiceConnection, ServiceRefused
from latency_contract.devices import Device, DeviceReport
from latency_contract.errors import ErrorBody
from latency_contract.operators import IBConv
from latency_contract.tables import LatencyAnswer, LatencyQuery, LatencyRelease, LatencyStatus, Released
from latency_service import tokens
from latency_service.app import create_app
from latency_service.database import Database
from latency_service.errors import BodyTooLarge
from latency_service.routes.access import MAX_JSON_BYTES, RULES, GuardedRoute, _within
from latency_service.settings import Settings
from latency_service.tokens import Role
from tests.conftest import live_service

PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect"}
FILES = {"/dashboard.css", "/dashboard.js", "/dashboard.svg"}  # of pages; the same for everybody
MAX_WAITING = 3


class Route(NamedTuple):
    method: str
    path: str

    @property
    def url(self) -> str:
        return re.sub(r"{[^}]+}", "x", self.path)


def routes() -> list[Route]:
    """Every route that the application answers at, however it came there."""
    app = create_app(Database("sqlite:///never-opened.db"), settings=Settings())
    found = []
    for route in iter_route_contexts(app.routes):
        assert route.path is not None
        if route.methods is None:
            assert route.path == "/docs-files", "a folder is open to all"
            continue
        found += [Route(method, route.path) for method in sorted(route.methods)]
    return found


ROUTES = routes()
GUARDED = [route for route in ROUTES if route.path not in PUBLIC | FILES]
PAGES = [route for route in GUARDED if RULES[f"{route.method} {route.path}"].in_browser]


class Farm:
    """A live service with tokens."""

    numbers = count()

    def __init__(self, url: str, database: Database) -> None:
        self.url, self.database = url, database

    def token(self, role: Role = Role.CLIENT, *, name: str | None = None) -> str:
        with self.database.writing() as session:
            return tokens.create(session, name=name or f"t{next(self.numbers)}", role=role, now=datetime.now(UTC))

    def revoked_token(self) -> str:
        secret = self.token(Role.ADMIN, name=(name := f"revoked-{next(self.numbers)}"))
        with self.database.writing() as session:
            tokens.revoke(session, name, now=datetime.now(UTC))
        return secret

    def call(self, route: Route, token: str | None, **options: Any) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.request(route.method, self.url + route.url, headers=headers, trust_env=False, **options)

    @contextmanager
    def connection(self, token: str) -> Iterator[ServiceConnection]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PADNAS_TOKEN", token)
            connection = ServiceConnection(self.url)
        with connection:
            yield connection


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def farm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with contextmanager(lambda: database_for(request, tmp_path_factory))() as url:
        settings = Settings(lease_s=3.0, max_waiting=MAX_WAITING)
        with live_service(url, settings=settings) as address:
            database = Database(url)
            farm = Farm(address, database)
            assert farm.call(Route("GET", "/v1/devices"), None).status_code == 200, "nobody has created a token yet"
            farm.token()
            yield farm
            database.dispose()


def database_for(request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{folders.mktemp('farm') / 'farm.db'}"
    else:
        with request.getfixturevalue("postgresql").database() as url:
            yield url


def refusal(response: httpx.Response) -> ErrorBody:
    return ErrorBody.model_validate_json(response.content)


def test_every_route_is_public_by_name_or_guarded() -> None:
    assert {f"{route.method} {route.path}" for route in GUARDED} <= set(RULES)
    assert {key for key, rule in RULES.items() if rule.roles is None} == {
        "GET /healthz", "GET /readyz", *(f"GET {path}" for path in FILES)
    }  # fmt: skip
    assert {route.path for route in ROUTES} >= PUBLIC


def test_an_endpoint_that_nobody_has_decided_about_cannot_be_defined() -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(AssertionError, match="who may GET /v1/new"):
        router.get("/v1/new")(lambda: None)


@pytest.mark.parametrize("path", sorted(PUBLIC | FILES))
def test_what_is_public_is_answered_without_a_token_and_names_nobody(farm: Farm, path: str) -> None:
    farm.token(Role.CLIENT, name=f"secretive-{path.replace('/', '-')}")
    for token in (None, farm.revoked_token()):
        response = farm.call(Route("GET", path), token)
        assert response.status_code == 200
        assert "secretive" not in response.text
        assert "sqlite" not in response.text


@pytest.mark.parametrize("route", [route for route in GUARDED if route not in PAGES], ids=str)
def test_a_guarded_endpoint_refuses_whom_it_must_and_admits_whom_it_should(
    farm: Farm, route: Route, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    allowed = RULES[f"{route.method} {route.path}"].roles
    assert allowed is not None
    sent, answers = [], []
    none = farm.call(route, None, content=b"{no JSON")
    assert (none.status_code, refusal(none).error) == (401, "NoToken")
    assert "PADNAS_TOKEN" in refusal(none).detail
    assert none.headers["WWW-Authenticate"] == "Bearer"
    stale, unknown = farm.revoked_token(), tokens.new_secret()
    for token, sentence in ((stale, "was revoked. Ask whoever runs this service"), (unknown, "token create --role")):
        response = farm.call(route, token, content=b"{no JSON")
        assert (response.status_code, refusal(response).error) == (401, "InvalidToken")
        assert sentence in refusal(response).detail
        sent.append(token)
        answers.append(response)
    for role in Role:
        token = farm.token(role)
        response = farm.call(route, token, content=b"{no JSON")
        if role in allowed or role == Role.ADMIN:
            assert response.status_code not in (401, 403)
            assert response.status_code < 500
        else:
            assert (response.status_code, refusal(response).error) == (403, "WrongRole")
            assert f"has the role {role}; this needs admin" in refusal(response).detail
        sent.append(token)
        answers.append(response)
    for token in sent:
        assert token not in caplog.text
        assert all(token not in response.text + str(response.headers) for response in answers)


@pytest.mark.parametrize("route", PAGES, ids=str)
def test_a_page_asks_a_browser_for_the_token_as_a_password(farm: Farm, route: Route) -> None:
    def shown(password: str | None) -> httpx.Response:
        auth = None if password is None else ("anybody", password)
        return httpx.get(farm.url + route.url, auth=auth, trust_env=False)

    for password in (None, "", tokens.new_secret(), farm.revoked_token()):
        refused = shown(password)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
        assert refused.headers["Content-Type"].startswith("text/html")
        assert "give any user name and the token as password" in refused.text
    assert shown(farm.token(Role.AGENT)).status_code == 403
    for role in (Role.CLIENT, Role.ADMIN):
        token = farm.token(role)
        response = shown(token)
        assert response.status_code in (200, 404, 422)  # of what does not exist
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert token not in response.text


@pytest.mark.parametrize("route", [route for route in GUARDED if route not in PAGES], ids=str)
def test_what_is_no_page_takes_no_password(farm: Farm, route: Route) -> None:
    """A browser would send it along with whatever another site makes it ask."""
    response = httpx.request(
        route.method, farm.url + route.url, auth=("anybody", farm.token(Role.ADMIN)), trust_env=False
    )
    assert response.status_code == 401


def test_pages_change_nothing() -> None:
    assert {route.method for route in PAGES} == {"GET"}


@pytest.mark.parametrize(
    ("role", "route"),
    [
        (Role.AGENT, Route("POST", "/v1/latencies/query")),
        (Role.AGENT, Route("GET", "/v1/measurements/1")),
        (Role.AGENT, Route("GET", "/v1/tables")),
        (Role.AGENT, Route("PUT", f"/v1/models/{'0' * 64}")),
        (Role.AGENT, Route("POST", "/v1/conversions")),
        (Role.CLIENT, Route("POST", "/v1/leases")),
        (Role.CLIENT, Route("PUT", "/v1/devices/x")),
        (Role.CLIENT, Route("POST", f"/v1/leases/{'0' * 32}/report")),
        (Role.CLIENT, Route("GET", f"/v1/models/{'0' * 64}")),
    ],
)
def test_neither_side_does_the_others_work(farm: Farm, role: Role, route: Route) -> None:
    assert farm.call(route, farm.token(role)).status_code == 403


@pytest.mark.parametrize("header", ["", "Bearer", "Basic cGFkbmFzOng=", "Bearer \xff", "Token x"])
def test_a_header_that_carries_no_token_is_no_token(farm: Farm, header: str) -> None:
    headers = [(b"Authorization", header.encode("latin-1"))]
    response = httpx.get(f"{farm.url}/v1/devices", headers=headers, trust_env=False)
    assert response.status_code == 401
    assert "token" in refusal(response).detail


def test_the_last_use_is_on_record(farm: Farm) -> None:
    secret = farm.token(name="seldom")
    farm.call(Route("GET", "/v1/devices"), secret)
    with farm.database.reading() as session:
        (row,) = [row for row in tokens.valid(session) if row.name == "seldom"]
    assert row.last_used_at is not None


def test_who_is_refused_is_told_so_by_an_exception_of_its_own(farm: Farm) -> None:
    with farm.connection(farm.revoked_token()) as connection, pytest.raises(NotAllowed, match="was revoked"):
        connection.request("GET", "/v1/devices")
    with farm.connection(farm.token(Role.AGENT)) as connection, pytest.raises(NotAllowed, match="has the role agent"):
        connection.request("GET", "/v1/tables")


def test_the_description_names_the_token_and_every_refusal(farm: Farm) -> None:
    document = farm.call(Route("GET", "/openapi.json"), None).json()
    for route in [route for route in GUARDED if route not in PAGES]:
        operation = document["paths"][route.path.replace(":path", "")][route.method.lower()]
        assert operation["security"] == [{"HTTPBearer": []}]
        assert {"401", "403", "413", "422"} <= set(operation["responses"])
    assert "security" not in document["paths"]["/healthz"]["get"]


# Limits


@pytest.mark.parametrize("route", [r for r in ROUTES if f"{r.method} {r.path}" in RULES], ids=str)
def test_a_body_that_says_it_is_too_long_is_refused_before_it_comes(farm: Farm, route: Route) -> None:
    connection = http.client.HTTPConnection(farm.url.removeprefix("http://"))
    connection.putrequest(route.method, route.url)
    connection.putheader("Authorization", f"Bearer {farm.token(Role.ADMIN)}")
    limit = RULES[f"{route.method} {route.path}"].max_body_bytes
    connection.putheader("Content-Length", str(limit + 1))
    connection.endheaders()
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 413
    assert f"longer than the {limit:,} bytes that are accepted here" in body
    if route not in PAGES and route.path not in FILES:
        assert ErrorBody.model_validate_json(body).error == "BodyTooLarge"


def test_a_body_that_does_not_say_how_long_it_is_is_refused_too(farm: Farm) -> None:
    megabyte = b" " * 2**20
    endless = (megabyte for _ in range(MAX_JSON_BYTES // 2**20 + 1))
    response = farm.call(Route("POST", "/v1/latencies/query"), farm.token(), content=endless)
    assert (response.status_code, refusal(response).error) == (413, "BodyTooLarge")


@pytest.mark.parametrize("role", [None, Role.AGENT, Role.CLIENT])
def test_who_is_refused_is_cut_off_in_the_middle_of_an_endless_body(farm: Farm, role: Role | None) -> None:
    endless = (b" " * 2**20 for _ in count())
    token = None if role is None else farm.token(role)
    response = farm.call(Route("POST", "/v1/latencies/query"), token, content=endless)
    assert response.status_code == {None: 401, Role.AGENT: 403, Role.CLIENT: 413}[role]
    assert response.headers["Connection"] == "close"


def test_a_client_that_sends_a_large_file_without_permission_is_told_why(farm: Farm) -> None:
    with farm.connection(farm.revoked_token()) as connection, pytest.raises(NotAllowed, match="was revoked"):
        connection.request("PUT", f"/v1/models/{'0' * 64}", content=bytes(64 * 2**20))


def test_a_body_beyond_the_limit_is_refused_before_it_is_all_in_memory() -> None:
    async def endless() -> dict[str, object]:
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    request = Request({"type": "http", "headers": []}, endless)
    with pytest.raises(BodyTooLarge, match="longer than the 9,999 bytes"):
        asyncio.run(_within(request, 9_999))


@pytest.fixture
def phone(farm: Farm, report: Callable[..., DeviceReport], request: pytest.FixtureRequest) -> DeviceReport:
    """A device model of the test's own."""
    described = report(serial=request.function.__name__[:80], model=request.function.__name__[:80])
    with farm.connection(farm.token(Role.AGENT)) as connection:
        connection.ask("PUT", f"/v1/devices/{described.serial}", Device, body=described)
    return described


def want(connection: ServiceConnection, phone: DeviceReport, *subjects: IBConv, client: str = "s") -> LatencyAnswer:
    query = LatencyQuery(device=phone.model, subjects=subjects, queue_missing=True, client=client)
    return connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)


def release(connection: ServiceConnection, client: str) -> int:
    return connection.ask("POST", "/v1/latencies/release", Released, body=LatencyRelease(client=client)).cancelled


def test_a_client_cannot_release_what_another_token_wants(
    farm: Farm, phone: DeviceReport, operator: Callable[..., IBConv]
) -> None:
    with farm.connection(farm.token()) as ana, farm.connection(farm.token()) as bob:
        want(ana, phone, operator(), operator(height=3))
        want(bob, phone, operator())
        assert release(bob, "s") == 0, "Ana still wants it"
        assert release(bob, "s") == 0
        assert release(ana, "t") == 0, "another search of Ana's"
        assert release(ana, "s") == 2


def test_a_token_waits_for_so_many_jobs_at_most_whatever_its_clients_are_called(
    farm: Farm, phone: DeviceReport, operator: Callable[..., IBConv]
) -> None:
    operators = [operator(height=height) for height in range(1, MAX_WAITING + 2)]
    with farm.connection(farm.token(name="greedy")) as greedy, farm.connection(farm.token()) as modest:
        with pytest.raises(ServiceRefused, match=r"The token 'greedy' may wait for 3 .* Nothing was queued") as refused:
            want(greedy, phone, *operators)
        assert (refused.value.error, refused.value.status) == ("QueueFull", 429)
        query = LatencyQuery(device=phone.model, subjects=tuple(operators))
        answer = greedy.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)
        assert {entry.status for entry in answer.entries} == {LatencyStatus.MISSING}
        for _ in range(2):
            want(greedy, phone, *operators[:-1])
        with pytest.raises(ServiceRefused, match="The token 'greedy' may wait for 3"):
            want(greedy, phone, operators[-1], client="alias")
        want(modest, phone, operators[-1])
        assert release(greedy, "s") == MAX_WAITING
        want(greedy, phone, operators[-1], client="alias")


def test_who_is_asked_to_wait_is_told_how_long(
    farm: Farm, phone: DeviceReport, operator: Callable[..., IBConv]
) -> None:
    operators = [operator(height=height).model_dump(mode="json") for height in range(1, MAX_WAITING + 2)]
    body = {"device": phone.model, "subjects": operators, "queue_missing": True}
    response = farm.call(Route("POST", "/v1/latencies/query"), farm.token(), json=body)
    assert response.headers["Retry-After"] == "60"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.7", ":1", "[::"]
)
def test_without_tokens_a_request_for_another_name_is_refused(service_url: str, host: str) -> None:
    """As a page sends it that has its own name lead to this machine."""
    answer = httpx.get(f"{service_url}/v1/devices", headers={"Host": host}, trust_env=False)
    assert (answer.status_code, answer.json()["error"]) == (403, "WrongHost")
    assert f"not to '{host}'. Use one of these, or create a token" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_without_tokens_this_machine_has_several_names(service_url: str, host: str) -> None:
    assert httpx.get(f"{service_url}/v1/devices", headers={"Host": host}, trust_env=False).status_code == 200
