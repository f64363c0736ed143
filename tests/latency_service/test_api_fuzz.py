"""A slice of what `python -m benchmarks api_fuzz` sends: every endpoint, every kind of token, on both databases."""

from benchmarks.api_fuzz import BEARERS, bearers, fuzz
from benchmarks.fuzzed_farm import FuzzedFarm
from latency_service.database import Database
from latency_service.routes.access import RULES
from latency_service.settings import Settings
from tests.conftest import live_service

CASES = 2 * len(RULES) * len(BEARERS)


def test_every_answer_is_as_the_document_says_and_no_token_gets_what_it_may_not(
    database: Database, database_url: str
) -> None:
    farm, secrets = FuzzedFarm(database), bearers(database)
    with live_service(database_url, settings=Settings(converts=False)) as url:
        fuzzed = fuzz(url, secrets, farm, cases=CASES)
    assert fuzzed.failures == []
    assert fuzzed.sent >= CASES
    assert fuzzed.never_answered == ["POST /v1/conversions"]  # this service converts nothing
