"""Tables as other programs read them."""

from collections.abc import Callable
from pathlib import Path
from statistics import variance

import pytest
import yaml

from latency_contract.measurements import Measurement
from latency_contract.operators import parse_key
from search_client.proxylessnas_format import Flavour, last_convolution
from search_client.spaces import load_space
from search_client.table_export import proxylessnas, to_csv
from tests.search_client.problems import BASIC, TINY
from tests.search_client.tables import imported, table_of


def test_a_measured_table_says_its_rounds_and_how_far_they_lie_apart(
    measurement: Callable[..., Measurement],
) -> None:
    table = table_of(BASIC, lambda operator: float(operator.kernel))
    medians = [1.0, 1.1, 1.3, 1.2]
    measurements = {entry.subject_id: measurement(entry.subject_id, medians) for entry in table.entries}
    written = proxylessnas(table, Flavour.PROXYLESSNAS, measurements=measurements)
    document = yaml.safe_load(written.text)
    key = "expanded_conv-input:112x112x16-output:56x56x32-expand:3-kernel:5-stride:2-idskip:0"
    assert document[key] == {"count": 6, "mean": 5.0, "var": pytest.approx(variance(medians))}
    assert written.keys == len(document) == len(table.entries) - 1
    assert written.notes[0].startswith(f"left out: {BASIC.head.key}: it is measured as one; for Conv_1 and Logits")
    assert written.text.startswith("# table version 1 of Pixel 3\n# table 000")
    assert f"# {written.notes[0]}\n" in written.text
    assert "var: variance over them, ms^2" in written.text


def test_a_table_file_has_no_variances_and_says_so() -> None:
    written = proxylessnas(table_of(BASIC, lambda _: 1.0), Flavour.PROXYLESSNAS)
    assert all(set(one) == {"count", "mean"} for one in yaml.safe_load(written.text).values())
    assert "var: left out, as the rounds are not in a table file" in written.text


def test_a_table_of_mobilenetv3_needs_its_own_flavour() -> None:
    table = table_of(load_space("mbv3"), lambda _: 1.0)
    with pytest.raises(ValueError, match="This format has no words for"):
        proxylessnas(table, Flavour.PROXYLESSNAS)
    written = proxylessnas(table, Flavour.MBV3)
    assert written.keys == len(table.entries) - 1
    assert any(key.endswith("-se:1-hs:1") for key in yaml.safe_load(written.text))


def test_an_imported_head_is_written_as_its_source_had_it(tmp_path: Path) -> None:
    text = "Conv_1-input:7x7x320-output:7x7x1280: {count: 9, mean: 3.0, var: 0.2}\n"
    text += "Logits-input:7x7x1280-output:1000: {count: 8, mean: 0.3, var: 0.1}\n"
    (tmp_path / "t.yaml").write_text(text)
    table = imported(tmp_path / "t.yaml")
    assert yaml.safe_load(proxylessnas(table, Flavour.PROXYLESSNAS).text) == yaml.safe_load(text)


def test_an_imported_table_of_our_keys_is_written_in_theirs(tmp_path: Path) -> None:
    head = BASIC.head
    (tmp_path / "t.csv").write_text(f"key,latency_ms\n{head.key},3.5\n{last_convolution(head).key},3.0\n")
    written = proxylessnas(imported(tmp_path / "t.csv"), Flavour.PROXYLESSNAS)
    assert yaml.safe_load(written.text) == {
        "Conv_1-input:7x7x320-output:7x7x1280": {"mean": 3.0},
        "Logits-input:7x7x1280-output:1000": {"mean": 0.5},
    }


def test_a_csv_of_a_measured_table_is_the_services() -> None:
    table = table_of(TINY, lambda _: 1.0)
    assert to_csv(table) == table.to_csv()


def test_a_csv_of_an_imported_table_says_its_source_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"key,latency_ms,low_ms,high_ms,confidence\n{TINY.stem.key},1.5,1.25,1.75,0.9\n")
    table = imported(tmp_path / "t.csv")
    text = to_csv(table)
    assert text.startswith("# device model: Pixel 1\n# imported on 2026-02-03 from t.csv")
    assert f"{TINY.stem.key},1.5,1.25,1.75,0.9,{TINY.stem.key}" in text
    (tmp_path / "again.csv").write_text(text)
    assert imported(tmp_path / "again.csv").entries == table.entries
    assert parse_key(table.entries[0].key) == TINY.stem
