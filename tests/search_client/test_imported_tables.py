"""Table files: what is imported is never taken for measured, and the other way round."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from latency_contract.tables import Table
from search_client.imported_tables import ImportedTable, LinearModel, describe, identity, of_operators, read_table
from tests.search_client.problems import TINY
from tests.search_client.tables import imported, linear_model_of, table_of


@pytest.fixture
def table(tmp_path: Path) -> ImportedTable:
    (tmp_path / "theirs.csv").write_text(f"key,latency_ms\n{TINY.stem.key},1.5\n{TINY.head.key},0.5\n")
    return imported(tmp_path / "theirs.csv")


def test_each_kind_of_table_is_read_as_what_it_is(table: ImportedTable, tmp_path: Path) -> None:
    for one in (table, table_of(TINY, lambda _: 2.0), linear_model_of(TINY, lambda index, _: -index)):
        (tmp_path / "t.json").write_text(one.model_dump_json(indent=1))
        again = read_table(tmp_path / "t.json")
        assert type(again) is type(one)
        assert again == one
        assert again.content_hash == one.content_hash


def test_an_imported_table_is_no_measured_one_and_the_other_way_round(table: ImportedTable) -> None:
    with pytest.raises(ValidationError):
        Table.model_validate_json(table.model_dump_json())
    with pytest.raises(ValidationError):
        ImportedTable.model_validate_json(table_of(TINY, lambda _: 2.0).model_dump_json())


def test_an_imported_table_cannot_deny_it(table: ImportedTable, tmp_path: Path) -> None:
    for change in ({"imported": False}, {"source": None}, {"rounds": 6}):
        (tmp_path / "t.json").write_text(json.dumps(table.model_dump(mode="json") | change))
        with pytest.raises(ValueError, match=r"t.json is not a table: .*"):
            read_table(tmp_path / "t.json")


def test_what_is_said_of_a_table_names_where_it_comes_from(table: ImportedTable) -> None:
    assert describe(table) == "imported table of Pixel 1 (theirs.csv)"
    assert describe(table_of(TINY, lambda _: 2.0)) == "table version 1 of Pixel 3"
    said = identity(table)
    assert said["content_sha256"] == table.content_hash
    assert table.source.sentence.startswith("imported on 2026-02-03 from theirs.csv (sha256 ")
    assert table.source.sentence.endswith("format csv; nobody is named as its author")


@pytest.mark.parametrize("change", [{"latency_ms": 1.6}, {"key": TINY.head.key}, {"latency_ms": 0.0}])
def test_an_entry_says_what_its_source_says(table: ImportedTable, change: dict[str, object]) -> None:
    document = table.model_dump(mode="json")
    document["entries"][0] |= change
    with pytest.raises(ValidationError):
        ImportedTable.model_validate(document)


def test_a_latency_outside_its_interval_is_refused(table: ImportedTable) -> None:
    document = table.model_dump(mode="json")
    document["entries"][0]["interval"] = {"low_ms": 2.0, "high_ms": 3.0, "confidence": 0.95}
    with pytest.raises(ValidationError, match="is outside its interval"):
        ImportedTable.model_validate(document)


def test_a_linear_model_in_which_something_takes_no_time_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"the fastest architecture would take -2 ms"):
        linear_model_of(TINY, lambda index, _: -1.0 if index < 2 else 0.0, bias_ms=0.0)


def test_a_linear_model_is_no_table_of_operators(table: ImportedTable) -> None:
    assert of_operators(table) is table
    with pytest.raises(ValueError, match="is a linear model: it has offsets of layers"):
        of_operators(linear_model_of(TINY, lambda index, _: index))


def test_a_linear_model_gives_its_space_back() -> None:
    model: LinearModel = linear_model_of(TINY, lambda index, _: index)
    assert model.space == TINY


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"imported": true}', "key,latency_ms\n", "\xff"])
def test_a_file_that_is_no_table_is_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.json is not a table"):
        read_table(path)
