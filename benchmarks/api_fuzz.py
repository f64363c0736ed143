"""What schemathesis draws from the OpenAPI document, sent with every kind of token to services on both databases.

Half of what is drawn fits the document and half does not. Of what fits, half names what exists in a farm that has
something of everything (fuzzed_farm.py), so that it gets beyond "there is no such thing": half of these by its names
alone, half with whole measurements, networks and files of it; the first is the document's own example. What a request
has changed is laid out anew before the next one. A case fails where the status is 500 or above, where
the answer is not what the document says, or where a token gets what it may not, or is refused what it may. Figures:

    cases                       requests
    failures                    of them, each printed
    operations_never_answered   operations, on either database, of which no fitting request was answered with 2xx;
                                how many were, of each, is in the results
"""

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import schemathesis
from hypothesis.strategies import SearchStrategy
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks import filled_farm
from benchmarks.fuzzed_farm import FuzzedFarm
from benchmarks.processes import running_service, wait_until_warm
from benchmarks.results_file import Figure, Target, record
from latency_service import tokens
from latency_service.database import Database
from latency_service.routes.access import RULES
from latency_service.tokens import Role

CASES = 20_000
QUICK_CASES = 1000
SEED = 0
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]
STALE, MISSING = "stale", "missing"
BEARERS = (*Role, STALE, MISSING)


class Replaced(Enum):
    """What of a drawn request gives way to what exists."""

    NOTHING = auto()
    NAMES = auto()  # texts and numbers
    PARTS = auto()  # and whole measurements, networks, files


class Drawn(NamedTuple):
    case: AnyCase
    fits: bool
    replaced: Replaced


class Fuzzed(NamedTuple):
    """What came of a service."""

    sent: int
    failures: list[str]
    answered: dict[str, int]  # of each operation, fitting requests that were rightly answered with 2xx

    @property
    def never_answered(self) -> list[str]:
        return [operation for operation, number in self.answered.items() if number == 0]


def run(*, quick: bool) -> None:
    each = (QUICK_CASES if quick else CASES) // 2 + 1
    databases = ("sqlite", "postgresql")
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        results = dict(
            zip(databases, processes.starmap(fuzz_database, [(kind, each) for kind in databases]), strict=True)
        )
    failures = [f"{kind}: {failure}" for kind, result in results.items() for failure in result.failures]
    unanswered = [f"{kind}: {name}" for kind, result in results.items() for name in result.never_answered]
    for failure in [*failures[:50], *(f"never answered: {name}" for name in unanswered)]:
        print(failure)
    cases = sum(result.sent for result in results.values())
    answered = {kind: result.answered for kind, result in results.items()}
    record(
        "api_fuzz",
        settings={"databases": databases, "tokens": BEARERS, "seed": SEED, "answered": answered},
        figures={
            "cases": Figure(cases, cases, cases, "cases"),
            "failures": Figure(len(failures), len(failures), len(failures), "cases"),
            "operations_never_answered": Figure(len(unanswered), len(unanswered), len(unanswered), "operations"),
        },
        targets={
            "cases": Target(">=", CASES),
            "failures": Target("<=", 0),
            "operations_never_answered": Target("<=", 0),
        },
        save=not quick,
    )


def fuzz_database(kind: str, cases: int) -> Fuzzed:
    """A service on a database of its own, fuzzed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        farm = filled_farm.durable_postgresql() if kind == "postgresql" else filled_farm.empty_sqlite(folder / "farm")
        with farm as url:
            database = Database(url)
            filled = FuzzedFarm(database)
            with running_service(folder, database_url=url) as (_, address):
                secrets = bearers(database)
                wait_until_warm(address)  # a converter that is not is none to be had
                fuzzed = fuzz(address, secrets, filled, cases=cases)
            database.dispose()
    return fuzzed


def bearers(database: Database) -> dict[str, str | None]:
    """A token of each role, one that was revoked, and none."""
    now = datetime.now(UTC)
    with database.writing() as session:
        secrets: dict[str, str | None] = {
            role: tokens.create(session, name=f"fuzz-{role}", role=role, now=now) for role in Role
        }
        secrets[STALE] = tokens.create(session, name="fuzz-stale", role=Role.ADMIN, now=now)
        tokens.revoke(session, "fuzz-stale", now=now)
    return secrets | {MISSING: None}


def fuzz(address: str, secrets: Mapping[str, str | None], farm: FuzzedFarm, *, cases: int) -> Fuzzed:
    """At least so many requests, spread over operations and tokens."""
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    document.config.generation.update(with_security_parameters=False)  # tokens are not drawn
    operations = list[Operation]()
    for read in document.get_all_operations():
        assert isinstance(read, Ok), "the document is sound"
        operations.append(read.ok())
    each = -(-cases // (len(operations) * len(secrets)))
    failures: list[str] = []
    answered = Counter[str]()
    sent = 0
    for operation in operations:
        drawn = _drawn(operation, each)
        answered[operation.label] = 0
        for bearer, secret in secrets.items():
            for one in drawn:
                case = _with_replacements(one, farm.known(operation.label))
                status, failure = _sent(case, bearer, secret)
                sent += 1
                if failure is not None:
                    failures.append(failure)
                answered[operation.label] += one.fits and failure is None and status < 300
                if case.method != "GET" and status < 300:
                    farm.lay_out()
    return Fuzzed(sent, failures, dict(answered))


def _drawn(operation: Operation, number: int) -> list[Drawn]:
    """So many, of both kinds where the operation takes anything that could be wrong."""
    takes_anything = operation.body or operation.path_parameters or operation.query
    wrong = (
        _cases(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), number // 2) if takes_anything else []
    )
    examples = [case for strategy in operation.get_strategies_from_examples()[:1] for case in _cases(strategy, 1)]
    fitting = _cases(operation.as_strategy(), number - len(wrong) - len(examples))
    ways = cycle((Replaced.PARTS, Replaced.NOTHING, Replaced.NAMES, Replaced.NOTHING))
    return [
        *(Drawn(case, True, replaced) for case, replaced in zip([*examples, *fitting], ways, strict=False)),
        *(Drawn(case, False, Replaced.NOTHING) for case in wrong),
    ]


def _cases(strategy: SearchStrategy[AnyCase], number: int) -> list[AnyCase]:
    """So many; the first again and again where there are fewer different ones; none where nothing is of that kind."""
    drawn: list[AnyCase] = []

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=max(number, 1),
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def draw(case: AnyCase) -> None:
        drawn.append(case)

    with suppress(hypothesis.errors.Unsatisfiable):  # any text is a name
        draw()
    return list(islice(cycle(drawn), number))


def _with_replacements(drawn: Drawn, known: Mapping[str, Any]) -> AnyCase:
    case, replaced = drawn.case, drawn.replaced
    if replaced is Replaced.NOTHING:
        return case
    if replaced is Replaced.NAMES:
        known = {name: value for name, value in known.items() if isinstance(value, str | int)}
    made: AnyCase = case.operation.Case(
        method=case.method,
        path_parameters=_with_known(case.path_parameters, known),
        query=_with_known(case.query, known),
        headers=case.headers,
        body=known["body"] if "body" in known else _with_known(case.body, known),
        media_type=case.media_type,
    )
    return made


def _with_known(part: Any, known: Mapping[str, Any]) -> Any:
    """The same with what exists in the place of what bears its name; what is empty stays so."""
    if isinstance(part, dict):
        return {
            name: known[name] if name in known and value else _with_known(value, known) for name, value in part.items()
        }
    return [_with_known(one, known) for one in part] if isinstance(part, list) else part


def _sent(case: AnyCase, bearer: str, secret: str | None) -> tuple[int, str | None]:
    """The status of the answer to a case, and what is wrong with it; None where it is right."""
    where = f"{case.operation.label} with token '{bearer}'"
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    response = case.call(headers=headers, timeout=60)
    status = response.status_code
    roles = RULES[f"{case.method} {_template(case.operation.path)}"].roles
    allowed = roles is None or bearer in roles | {Role.ADMIN}
    refused = 403 if bearer in tuple(Role) else 401
    if allowed and status in (401, 403):
        return status, f"{where}: refused with {status}, though it may"
    if not allowed and status != refused:
        return status, f"{where}: {status} instead of {refused}"
    try:
        case.validate_response(response, checks=CHECKS)
    except (Failure, FailureGroup) as failure:
        why = f"{failure} {getattr(failure, 'exceptions', '')}"
        return status, f"{where}: {status}: {why} {case.as_curl_command()}"
    return status, None


def _template(path: str) -> str:
    """As RULES has it; the document leaves out how a parameter is converted."""
    return next(
        template.split(" ", 1)[1] for template in RULES if template.split(" ", 1)[1].replace(":path}", "}") == path
    )
