"""TuNAS's linear model, as its authors publish it, and as it might be wrong."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tunas_import import META, MODEL, predicted_ms, published_architectures
from search_client.imported_tables import ImportFormat, LinearModel, Source, SourceFile
from search_client.spaces import IDENTITY, load_space
from search_client.table_import import import_table
from search_client.table_latencies import additive_latency, predict
from search_client.tunas_format import bias_ms, linear_model
from tests.search_client.tables import NOW

BASIC = load_space("basic")
SOURCE = Source(
    files=(SourceFile(name="m.csv", sha256="0" * 64),), format=ImportFormat.TUNAS, imported_at=NOW, stated_by=None
)


def lines() -> list[dict[str, str]]:
    """Every choice of every layer of `basic`, with an offset that tells them apart."""
    made = []
    for index, layer in enumerate(BASIC.layers):
        for place, choice in enumerate(layer.choices):
            shape = {"hw": layer.height, "cin": layer.in_channels, "cout": layer.out_channels, "stride": layer.stride}
            line = {"layer": index, **shape, "op": "identity", "kernel": "", "expand": "", "coef_ms": index - place}
            if choice != IDENTITY:
                _, kernel, expansion = choice.split("_")
                named = "sepconv" if expansion == "E1" else "mbconv"
                line |= {"op": named, "kernel": kernel[1:], "expand": expansion[1:]}
            made.append({name: str(value) for name, value in line.items()})
    return made


def model(rows: list[dict[str, str]], *, bias: float = 200.0) -> LinearModel:
    return linear_model(rows, bias_ms=bias, device_model="Pixel 1", source=SOURCE)


def test_every_choice_has_the_offset_of_its_line() -> None:
    made = model(lines())
    assert made.space == BASIC
    for index, layer in enumerate(made.layers):
        assert list(layer.coefficients_ms.values()) == [index - place for place in range(len(layer.coefficients_ms))]


@pytest.mark.parametrize(
    ("place", "change", "sentence"),
    [
        (0, {"hw": "56"}, r"layer 0 is \(56, 32, 16, 1\) .*but \(112, 32, 16, 1\) in the space 'basic'"),
        (3, {"kernel": "9"}, "layer 1 has .*IBConv_K9_E3.* but the space 'basic' offers"),
        (3, {"op": "conv"}, "'conv' is no operator"),
        (4, {"kernel": "3", "expand": "3"}, "layer 1 has IBConv_K3_E3 twice"),
        (0, {"layer": "22"}, "it has a layer 22"),
        (0, {"coef_ms": "slow"}, "could not convert"),
        (0, {"coef_ms": "nan"}, "finite"),
    ],
)
def test_a_model_of_anything_else_than_the_basic_space_is_refused(
    place: int, change: dict[str, str], sentence: str
) -> None:
    rows = lines()
    rows[place] |= change
    with pytest.raises(ValueError, match=sentence):
        model(rows)


def test_a_layer_without_offsets_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 0 has nothing"):
        model([row for row in lines() if row["layer"] != "0"])


def test_a_bias_is_read_from_a_file_that_says_more() -> None:
    assert bias_ms('{"bias_ms": 92.5, "other": 1}') == 92.5
    for text in ("{}", '{"bias_ms": null}', '{"bias_ms": "slow"}'):
        with pytest.raises(ValueError, match="bias_ms"):
            bias_ms(text)


def test_the_published_model_says_what_its_authors_say(shared_data: Path) -> None:
    """84.0 ms within 1 ms for the architecture of TuNAS's own test, and 84.4 ms for ProxylessNAS-mobile."""
    found = predicted_ms(shared_data / MODEL, shared_data / META)
    assert found["tunas_test_arch_ms"] == pytest.approx(84.0, abs=1.0)
    assert found["proxylessnas_mobile_ms"] == pytest.approx(84.4, abs=0.05)


def test_proxylessnas_mobile_is_the_same_by_its_layers(shared_data: Path) -> None:
    """Its choices by TuNAS's indices, and by the layers that ProxylessNAS's own configuration lists."""
    (blocks,) = [
        one["blocks"]
        for one in json.loads((shared_data / "architectures.json").read_text())["archs"]
        if one["name"] == "ProxylessNAS-mobile"
    ]
    by_layers = tuple(
        IDENTITY if block["op"] == "identity" else f"IBConv_K{block['kernel']}_E{block['expand']}" for block in blocks
    )
    meta = json.loads((shared_data / META).read_text())
    assert published_architectures(meta)["proxylessnas_mobile_ms"] == by_layers
    imported = import_table(
        shared_data / MODEL, as_format=None, device_model="Pixel 1", stated_by=None, bias=shared_data / META, now=NOW
    )
    prediction = predict(BASIC.network(by_layers), by_layers, imported)
    assert prediction.latency_ms == pytest.approx(84.4, abs=0.05)
    assert (prediction.low_ms, prediction.high_ms) == (None, None)


def test_random_architectures_cost_the_sum_of_the_published_lines(shared_data: Path) -> None:
    with (shared_data / MODEL).open() as file:
        rows = list(csv.DictReader(file))
    coefficients = {}
    for row in rows:
        choice = IDENTITY if row["op"] == "identity" else f"IBConv_K{row['kernel']}_E{row['expand']}"
        coefficients[int(row["layer"]), choice] = float(row["coef_ms"])
    bias = json.loads((shared_data / META).read_text())["bias_ms"]
    imported = import_table(
        shared_data / MODEL, as_format=None, device_model="Pixel 1", stated_by=None, bias=shared_data / META, now=NOW
    )
    latency, rng = additive_latency(BASIC, imported), np.random.default_rng(0)
    for _ in range(50):
        choices = BASIC.sample(rng)
        genes = [layer.choices.index(choice) for layer, choice in zip(BASIC.layers, choices, strict=True)]
        expected = bias + sum(coefficients[index, choice] for index, choice in enumerate(choices))
        assert latency.of(np.array([genes]))[0] == pytest.approx(expected)
