"""A search that has its table refined between stages, with a service of its own: others want their table as it was."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import running_service
from latency_contract.operators import Network
from latency_contract.tables import Table
from tests.end_to_end.test_search import SMALLEST, client, search_command

pytestmark = pytest.mark.usefixtures("this_machine")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    with running_service(tmp_path, "--with-local-agent") as (_, url):
        yield url


def test_a_search_that_refines_its_table_says_which_each_stage_used_and_ends_with_the_same_bytes(
    service: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert client("table", "build", "--service", service, "--space", str(SMALLEST)).exit_code == 0
    assert client("table", "export", "--service", service, "--out", str(tmp_path / "built.json")).exit_code == 0
    built = Table.model_validate_json((tmp_path / "built.json").read_text())
    result = client(*search_command(service, out, "--refine", "4"))
    assert result.exit_code == 0, result.stderr
    final = json.loads((out / "final.json").read_text())
    kept = [
        Table.model_validate_json(path.read_text())
        for path in (out / "table.json", *sorted(out.glob("stage-*/table.json")))
    ]
    used = [{"table_id": table.table_id, "version": table.version} for table in kept]
    assert [stage["table"] for stage in final["stages"]] == used
    assert final["table"] == used[-1]
    versions = [table.version for table in (built, *kept)]
    assert versions == sorted(versions)
    for architecture in final["architectures"]:
        operators = Network.model_validate(architecture["network"]).operators
        predicted = sum(kept[-1].by_subject[operator.id].latency_ms for operator in operators)
        assert architecture["predicted_latency"]["latency_ms"] == pytest.approx(predicted)
    before = (out / "final.json").read_bytes()
    (out / "final.json").unlink()
    (out / "stage-3" / "distribution.json").unlink()
    assert client(*search_command(service, out, "--refine", "4")).exit_code == 0
    assert (out / "final.json").read_bytes() == before
