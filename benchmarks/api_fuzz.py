"""What schemathesis draws from the OpenAPI document, sent with every kind of token to services on both databases.

Half of what is drawn fits the document and half does not; of what fits, half names a device, a model or a measurement
that exists, so that it gets beyond "there is no such thing". A case fails where the status is 500 or above, where the
answer is not what the document says, or where a token gets what it may not, or is refused what it may. Figures:

    cases      requests
    failures   of them, each printed
"""

import multiprocessing
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
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
from benchmarks.processes import running_service
from benchmarks.results_file import Figure, Target, record
from latency_contract.operators import KEY_EXAMPLE
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
# In the place of what was drawn, so that something is found.
KNOWN: dict[str, Any] = {
    "serial": filled_farm.serial(0),
    "device": filled_farm.DEVICE_MODEL,
    "key": KEY_EXAMPLE,
    "sha256": filled_farm.MODEL_SHA256,
    "measurement_id": 1,
}
Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]
STALE, MISSING = "stale", "missing"
BEARERS = (*Role, STALE, MISSING)


def run(*, quick: bool) -> None:
    each = (QUICK_CASES if quick else CASES) // 2 + 1
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        results = processes.starmap(fuzz_database, [("sqlite", each), ("postgresql", each)])
    failures = [failure for _, failed in results for failure in failed]
    for failure in failures[:50]:
        print(failure)
    cases = sum(sent for sent, _ in results)
    record(
        "api_fuzz",
        settings={"databases": ["sqlite", "postgresql"], "tokens": BEARERS, "seed": SEED},
        figures={
            "cases": Figure(cases, cases, cases, "cases"),
            "failures": Figure(len(failures), len(failures), len(failures), "cases"),
        },
        targets={"cases": Target(">=", CASES), "failures": Target("<=", 0)},
        save=not quick,
    )


def fuzz_database(kind: str, cases: int) -> tuple[int, list[str]]:
    """A service on a database of its own, fuzzed; how many requests were sent, and what was wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        farm = filled_farm.durable_postgresql() if kind == "postgresql" else filled_farm.empty_sqlite(folder / "farm")
        with farm as url:
            database = Database(url)
            with database.writing() as session:
                filled_farm.enrol(session, [filled_farm.serial(0)])
            with running_service(folder, database_url=url) as (_, address):
                sent, failures = fuzz(address, bearers(database), cases=cases)
            database.dispose()
    return sent, [f"{kind}: {failure}" for failure in failures]


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


def fuzz(address: str, secrets: dict[str, str | None], *, cases: int) -> tuple[int, list[str]]:
    """At least so many requests, spread over operations and tokens."""
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    document.config.generation.update(with_security_parameters=False)  # tokens are not drawn
    operations = list[Operation]()
    for read in document.get_all_operations():
        assert isinstance(read, Ok), "the document is sound"
        operations.append(read.ok())
    each = -(-cases // (len(operations) * len(secrets)))
    failures: list[str] = []
    sent = 0
    for operation in operations:
        cases_of_operation = _cases(operation, each)
        for bearer, secret in secrets.items():
            for case in cases_of_operation:
                if failure := _failure(case, bearer, secret):
                    failures.append(failure)
                sent += 1
    return sent, failures


def _cases(operation: Operation, number: int) -> list[AnyCase]:
    """So many, of both kinds where the operation takes anything that could be wrong."""
    takes_anything = operation.body or operation.path_parameters or operation.query
    wrong = _drawn(operation, GenerationMode.NEGATIVE, number // 2) if takes_anything else []
    fitting = _drawn(operation, GenerationMode.POSITIVE, number - len(wrong))
    for case in fitting[::2]:
        _name_what_exists(case)
    return fitting + wrong


def _drawn(operation: Operation, mode: GenerationMode, number: int) -> list[AnyCase]:
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
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def draw(case: AnyCase) -> None:
        drawn.append(case)

    with suppress(hypothesis.errors.Unsatisfiable):  # any text is a name
        draw()
    return list(islice(cycle(drawn), number))


def _name_what_exists(case: AnyCase) -> None:
    for part in (case.path_parameters, case.body):
        if isinstance(part, dict):
            part.update({name: value for name, value in KNOWN.items() if name in part})


def _failure(case: AnyCase, bearer: str, secret: str | None) -> str | None:
    """What is wrong with the answer to a case; None where it is right."""
    where = f"{case.method} {case.operation.path} with token '{bearer}'"
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    response = case.call(headers=headers, timeout=60)
    roles = RULES[f"{case.method} {_template(case.operation.path)}"].roles
    allowed = roles is None or bearer in roles | {Role.ADMIN}
    refused = 403 if bearer in tuple(Role) else 401
    if allowed and response.status_code in (401, 403):
        return f"{where}: refused with {response.status_code}, though it may"
    if not allowed and response.status_code != refused:
        return f"{where}: {response.status_code} instead of {refused}"
    try:
        case.validate_response(response, checks=CHECKS)
    except (Failure, FailureGroup) as failure:
        return (
            f"{where}: {response.status_code}: {failure} {getattr(failure, 'exceptions', '')} {case.as_curl_command()}"
        )
    return None


def _template(path: str) -> str:
    """As RULES has it; the document leaves out how a parameter is converted."""
    return next(
        template.split(" ", 1)[1] for template in RULES if template.split(" ", 1)[1].replace(":path}", "}") == path
    )
