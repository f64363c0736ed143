"""Files of other projects, and our own, as imported tables."""

import hashlib
import math
import shutil
from pathlib import Path

import pytest

from search_client.imported_tables import ImportFormat, SourceNumber
from search_client.proxylessnas_format import Flavour
from search_client.table_export import proxylessnas, to_csv
from search_client.table_import import OF_VARIANCES, OWN_INTERVALS, import_table, interval_of_mean
from tests.search_client.problems import TINY
from tests.search_client.tables import NOW, imported, linear_model_of, table_of

YAML = """# a comment
Conv-input:224x224x3-output:112x112x32: {count: 982, mean: 4.0, var: 0.25}
AvgPool2D-input:7x7x960-output:1x1x960: {mean: 0.1}
"""
CSV = "key,latency_ms\nIBConv_K3_E6_H14_W14_I80_O80_S1_relu6_residual,2.5\n"
THEIR_CSV = """device,framework,latency_ms,var_or_std,count,key
Pixel 1,TFLite,4.0,0.25,982,Conv-input:224x224x3-output:112x112x32
Pixel 1,TFLite,6.0,,,expanded_conv-input:14x14x80-output:14x14x80-expand:6-kernel:3-stride:1-idskip:1
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (YAML, ImportFormat.PROXYLESSNAS_YAML),
        ("? 'Conv-input:224x224x3-output:112x112x32'\n: {mean: 4.0}\n", ImportFormat.PROXYLESSNAS_YAML),
        (CSV, ImportFormat.CSV),
        ("# device model: x\n" + CSV, ImportFormat.CSV),
        (THEIR_CSV, ImportFormat.PROXYLESSNAS_CSV),
        (table_of(TINY, lambda _: 2.0).model_dump_json(), ImportFormat.JSON),
        (table_of(TINY, lambda _: 2.0).to_csv(), ImportFormat.CSV),
    ],
)
def test_a_format_is_known_by_its_content(tmp_path: Path, text: str, expected: ImportFormat) -> None:
    (tmp_path / "table").write_text(text)
    table = imported(tmp_path / "table")
    assert table.source.format == expected
    assert table.source.files[0].name == "table"
    assert table.source.files[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert table.source.imported_at == NOW
    assert table.device_model == "Pixel 1"


def test_numbers_of_a_yaml_table_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    table = imported(tmp_path / "t.yaml")
    assert table.left_out == ("AvgPool2D-input:7x7x960-output:1x1x960",)
    (entry,) = table.entries
    assert entry.key == "Conv_K3_H224_W224_I3_O32_S2_relu6"
    assert entry.latency_ms == 4.0
    key = "Conv-input:224x224x3-output:112x112x32"
    assert entry.source == (SourceNumber(key=key, latency_ms=4.0, count=982, variance_ms2=0.25),)
    assert table.interval_means == OF_VARIANCES
    assert table.source.stated_by is None


def test_an_interval_is_that_of_a_mean() -> None:
    """Against the normal quantile, which Student's is next to with so many readings."""
    number = SourceNumber(key="a", latency_ms=4.0, count=982, variance_ms2=0.25)
    interval = interval_of_mean([number])
    assert interval is not None
    assert interval.high_ms - 4.0 == pytest.approx(1.96 * math.sqrt(0.25 / 982), rel=2e-3)
    assert 4.0 - interval.low_ms == pytest.approx(interval.high_ms - 4.0)
    both = interval_of_mean([number, number])
    assert both is not None
    assert both.high_ms - 8.0 == pytest.approx(math.sqrt(2) * (interval.high_ms - 4.0))


@pytest.mark.parametrize("lacks", [{"count": None}, {"variance_ms2": None}, {"count": 1}, {"variance_ms2": 1e6}])
def test_no_interval_is_invented(lacks: dict[str, float | None]) -> None:
    number = {"key": "a", "latency_ms": 4.0, "count": 10, "variance_ms2": 0.25} | lacks
    assert interval_of_mean([SourceNumber.model_validate(number)]) is None


def test_a_csv_of_theirs_names_who_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(THEIR_CSV)
    table = imported(tmp_path / "t.csv")
    assert table.source.stated_by == "TFLite on Pixel 1"
    assert [entry.interval is None for entry in table.entries] == [False, True]


def test_who_imports_may_say_who_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(THEIR_CSV)
    table = import_table(
        tmp_path / "t.csv", as_format=None, device_model="Pixel 1", stated_by="the authors", bias=None, now=NOW
    )
    assert table.source.stated_by == "the authors"


def test_our_own_table_keeps_its_intervals_and_says_it_is_imported(tmp_path: Path) -> None:
    table = table_of(TINY, lambda operator: operator.kernel)
    for name, text in (("t.json", table.model_dump_json()), ("t.csv", table.to_csv())):
        (tmp_path / name).write_text(text)
        again = imported(tmp_path / name)
        assert again.interval_means == OWN_INTERVALS
        assert "version 1" in str(again.source.stated_by)
        assert [(one.key, one.latency_ms) for one in again.entries] == [
            (one.key, one.latency_ms) for one in sorted(table.entries, key=lambda entry: entry.key)
        ]
        for one in again.entries:
            assert one.interval is not None
            assert one.interval.low_ms == table.by_subject[one.operator.id].low_ms
            assert one.source[0].count is None


def test_a_csv_without_intervals_has_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    table = imported(tmp_path / "t.csv")
    assert table.interval_means is None
    assert table.entries[0].interval is None


@pytest.mark.parametrize(
    ("as_format", "text", "sentence"),
    [
        (None, "hello", r"t is in no format that is known here. Known are json, csv, proxylessnas-yaml"),
        (None, "", "is in no format"),
        ("csv", "key,latency_ms\nnonsense,1\n", "t cannot be read as csv: 'nonsense' is not an operator's key"),
        ("csv", CSV.replace("2.5", "0"), "latency_ms: Input should be greater than 0"),
        ("csv", CSV + CSV.splitlines()[1], "more than once"),
        ("csv", "latency_ms\n1\n", "it has no key"),
        ("csv", "latency_ms,key\n1,\n2\n", "the line '2' has too few cells"),
        ("csv", "key,latency_ms\n", "entries: Tuple should have at least 1 item"),
        ("proxylessnas-csv", THEIR_CSV.replace("Conv-", "Conv "), "'Conv input:.*' is no key of this format"),
        ("proxylessnas-csv", "key,latency_ms,var_or_std,se\na,1,1,1\n", "'a' has squeeze-and-excitation"),
        ("proxylessnas-yaml", YAML + YAML, "it has a key twice"),
        ("proxylessnas-yaml", YAML.replace("4.0", "x"), "'Conv-input:224x224x3-output:112x112x32': latency_ms"),
        ("json", linear_model_of(TINY, lambda index, _: index).model_dump_json(), "it is an imported table already"),
        ("json", "{}", "t cannot be read as json: table_id: Field required"),
        ("tunas", CSV, "Give the JSON file with its bias_ms with --bias"),
    ],
)
def test_a_file_that_does_not_hold_what_it_should_is_a_sentence(
    tmp_path: Path, as_format: str | None, text: str, sentence: str
) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        imported(tmp_path / "t", as_format=None if as_format is None else ImportFormat(as_format))


def test_a_bias_for_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(ValueError, match=r"is read as csv, which has no bias\. Leave out --bias"):
        imported(tmp_path / "t.csv", bias=tmp_path / "t.csv")


def test_bytes_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text"):
        imported(tmp_path / "t.csv")


def test_the_pixel_1_table_of_proxylessnas_is_imported_whole(shared_data: Path, tmp_path: Path) -> None:
    """And comes back from each format that it is exported to."""
    table = imported(shared_data / "proxylessnas_pixel1_mobile_trim.csv")
    assert len(table.entries) == 72
    assert table.left_out == ()
    head = next(entry for entry in table.entries if entry.key.startswith("Head_"))
    assert head.latency_ms == pytest.approx(3.088623217922607 + 0.3096415478615071)
    assert all(entry.interval is not None for entry in table.entries)
    (tmp_path / "t.yaml").write_text(proxylessnas(table, Flavour.PROXYLESSNAS).text)
    assert imported(tmp_path / "t.yaml").entries == table.entries
    (tmp_path / "t.csv").write_text(to_csv(table))
    from_csv = imported(tmp_path / "t.csv")
    assert [(e.key, e.latency_ms, e.interval) for e in from_csv.entries] == [
        (e.key, e.latency_ms, e.interval) for e in table.entries
    ]


def test_the_same_file_under_another_name_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    shutil.copy(tmp_path / "a.csv", tmp_path / "b.csv")
    assert imported(tmp_path / "a.csv").entries == imported(tmp_path / "b.csv").entries
