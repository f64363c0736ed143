"""The text keys of ProxylessNAS and once-for-all, and the YAML that their code reads."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from latency_contract.operators import Activation, Conv, Head, IBConv
from search_client.imported_tables import SourceNumber
from search_client.proxylessnas_format import (
    Flavour,
    Row,
    Written,
    last_convolution,
    operators_of,
    to_numbers,
    to_yaml,
    yaml_numbers,
)


def changed(operator: Any, **changes: Any) -> Any:
    return type(operator).model_validate(operator.model_dump() | changes)


STEM = Conv(height=224, width=224, in_channels=3, out_channels=32, kernel=3, stride=2)
BOTTLENECK = IBConv(
    height=7, width=7, in_channels=192, out_channels=320, kernel=5, stride=1, expansion=6, residual=False
)
HEAD = Head(height=7, width=7, in_channels=320, hidden_channels=1280, out_channels=1000)
LAST = last_convolution(HEAD)
SE = changed(BOTTLENECK, squeeze_excite=True, activation=Activation.HSWISH)
KEYS = {  # as they stand in mobile_trim.yaml
    STEM: "Conv-input:224x224x3-output:112x112x32",
    BOTTLENECK: "expanded_conv-input:7x7x192-output:7x7x320-expand:6-kernel:5-stride:1-idskip:0",
    LAST: "Conv_1-input:7x7x320-output:7x7x1280",
}
LOGITS = "Logits-input:7x7x1280-output:1000"


def predicted_as_they_do(lut: dict[str, dict[str, float]], **layer: Any) -> float:
    """What `LatencyEstimator.predict` of ProxylessNAS looks up: joins its arguments to a key, and reads `mean`."""
    shapes = ["x".join(map(str, layer[name])) for name in ("input", "output")]
    parts = [layer["ltype"], f"input:{shapes[0]}", f"output:{shapes[1]}"]
    parts += [f"{name}:{layer[name]:d}" for name in ("expand", "kernel", "stride", "idskip") if name in layer]
    return lut["-".join(parts)]["mean"]


def numbers(*keys: str) -> list[SourceNumber]:
    return [SourceNumber(key=key, latency_ms=1.0 + place) for place, key in enumerate(keys)]


def test_their_code_finds_every_layer_of_a_network() -> None:
    residual = IBConv(
        height=14, width=14, in_channels=80, out_channels=80, kernel=3, stride=1, expansion=3, residual=True
    )
    rows = [Row(STEM, 4.0), Row(BOTTLENECK, 2.0, 6, 0.01), Row(residual, 1.0), Row(HEAD, 3.5), Row(LAST, 3.0)]
    lut = yaml.safe_load(to_yaml(to_numbers(rows, Flavour.PROXYLESSNAS).numbers, comments=["a comment"]))
    assert predicted_as_they_do(lut, ltype="Conv", input=[224, 224, 3], output=[112, 112, 32]) == 4.0
    assert predicted_as_they_do(
        lut, ltype="expanded_conv", input=(7, 7, 192), output=(7, 7, 320), expand=6, kernel=5, stride=1, idskip=0
    ) == 2.0  # fmt: skip
    assert predicted_as_they_do(
        lut, ltype="expanded_conv", input=(14, 14, 80), output=(14, 14, 80), expand=3, kernel=3, stride=1, idskip=1
    ) == 1.0  # fmt: skip
    assert predicted_as_they_do(lut, ltype="Conv_1", input=[7, 7, 320], output=[7, 7, 1280]) == 3.0
    assert predicted_as_they_do(lut, ltype="Logits", input=[7, 7, 1280], output=[1000]) == 0.5
    assert lut[KEYS[BOTTLENECK]] == {"count": 6, "mean": 2.0, "var": 0.01}


def test_what_is_not_known_is_left_out_of_the_yaml() -> None:
    assert yaml.safe_load(to_yaml(to_numbers([Row(STEM, 4.0)], Flavour.PROXYLESSNAS).numbers, comments=[])) == {
        KEYS[STEM]: {"mean": 4.0}
    }


def test_logits_are_what_the_head_takes_beyond_its_convolution() -> None:
    written = to_numbers([Row(HEAD, 3.5, 8, 0.03), Row(LAST, 3.0, 6, 0.01)], Flavour.PROXYLESSNAS).numbers
    assert written[LOGITS].latency_ms == 0.5
    assert written[LOGITS].count == 8
    assert written[LOGITS].variance_ms2 == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([Row(HEAD, 3.5)], f"for Conv_1 and Logits, {LAST.key} is needed too"),
        ([Row(HEAD, 3.0), Row(LAST, 3.0)], f"it is not slower than {LAST.key}"),
    ],
)
def test_a_head_that_cannot_be_split_is_left_out_with_the_reason(rows: list[Row], reason: str) -> None:
    written = to_numbers(rows, Flavour.PROXYLESSNAS)
    assert LOGITS not in written.numbers
    assert reason in written.left_out[HEAD.key]


@pytest.mark.parametrize(
    "operator",
    [
        SE,
        changed(BOTTLENECK, squeeze_excite=True),
        changed(BOTTLENECK, activation=Activation.RELU),
        changed(STEM, kernel=5),
        changed(STEM, stride=1),
        changed(LAST, activation=Activation.NONE),
    ],
)
def test_what_the_format_has_no_words_for_is_refused(operator: Conv | IBConv) -> None:
    with pytest.raises(ValueError, match=f"no words for {operator.key}: .*use --format yaml-mbv3 or csv"):
        to_numbers([Row(STEM, 4.0), Row(operator, 1.0)], Flavour.PROXYLESSNAS)


def test_the_flavour_of_mobilenetv3_says_hidden_channels_squeeze_excite_and_hswish() -> None:
    relu = changed(BOTTLENECK, activation=Activation.RELU)
    rows = [Row(SE, 2.0), Row(relu, 1.0)]
    shapes = "expanded_conv-input:7x7x192-output:7x7x320-expand:1152-kernel:5-stride:1-idskip:0"
    assert set(to_numbers(rows, Flavour.MBV3).numbers) == {f"{shapes}-se:1-hs:1", f"{shapes}-se:0-hs:0"}
    with pytest.raises(ValueError, match=f"no words for {BOTTLENECK.key}: .*use --format yaml or csv"):
        to_numbers([Row(BOTTLENECK, 1.0)], Flavour.MBV3)


def test_a_head_of_mobilenetv3_is_left_out() -> None:
    head = changed(HEAD, activation=Activation.HSWISH)
    written = to_numbers([Row(head, 1.0), Row(SE, 1.0)], Flavour.MBV3)
    assert written.left_out == {head.key: "the head of once-for-all's MobileNetV3 has other parts"}


def test_two_operators_with_one_key_are_refused_and_never_merged() -> None:
    """`Logits` says what comes in and out, and not what comes before, from which its latency is taken here."""
    heads = [HEAD, Head(height=7, width=7, in_channels=160, hidden_channels=1280, out_channels=1000)]
    rows = [Row(head, 3.5 + place) for place, head in enumerate(heads)]
    rows += [Row(last_convolution(head), 3.0) for head in heads]
    with pytest.raises(ValueError, match=f"{heads[0].key} and {heads[1].key} would both be '{LOGITS}'"):
        to_numbers(rows, Flavour.PROXYLESSNAS)


@pytest.mark.parametrize("flavour", list(Flavour))
def test_what_is_written_is_read_as_the_same_operators(flavour: Flavour, operator: Callable[..., IBConv]) -> None:
    activation = Activation.RELU6 if flavour is Flavour.PROXYLESSNAS else Activation.HSWISH
    changes: tuple[dict[str, Any], ...] = ({}, {"residual": True}, {"stride": 2}, {"expansion": 1}, {"kernel": 7})
    rows = [
        Row(operator(activation=activation, **change), 1.0 + place, 3 + place, 0.5)
        for place, change in enumerate(changes)
    ]
    rows.append(Row(changed(STEM, activation=activation), 9.0))
    written = to_numbers(rows, flavour).numbers
    found, left_out = operators_of(yaml_numbers(to_yaml(written, comments=["one", "two"])))
    assert left_out == []
    assert {op: (n[0].latency_ms, n[0].count, n[0].variance_ms2) for op, n in found.items()} == {
        row.operator: (row.mean_ms, row.readings, row.variance_ms2) for row in rows
    }


def test_a_head_is_read_as_its_two_parts() -> None:
    found, left_out = operators_of(numbers(KEYS[LAST], LOGITS))
    assert [n.key for n in found[HEAD]] == [KEYS[LAST], LOGITS]
    assert list(found) == [LAST, HEAD]
    assert left_out == []


def test_what_has_no_operator_here_is_left_out_by_name() -> None:
    """Parts of MobileNetV3's head; hidden channels that are no multiple of the input's."""
    keys = [
        "AvgPool2D-input:7x7x960-output:1x1x960",
        "Conv_2-input:1x1x960-output:1x1x1280",
        "Logits-input:1x1x1280-output:1000",
        "expanded_conv-input:7x7x160-output:7x7x160-expand:672-kernel:5-stride:1-idskip:1-se:1-hs:1",
        "expanded_conv-input:7x7x160-output:7x7x160-expand:640-kernel:5-stride:1-idskip:1-se:1-hs:1",
    ]
    found, left_out = operators_of(numbers(*keys))
    assert left_out == keys[:-1]
    assert [op.key for op in found] == ["IBConv_K5_E4_H7_W7_I160_O160_S1_hswish_residual_se"]
    assert operators_of(numbers(LOGITS))[1] == [LOGITS]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["nonsense"], "'nonsense' is no key of this format"),
        (["Conv-input:224x224x3-output:100x100x32"], "says an output of 100x100x32, but it is 112x112x32"),
        ([KEYS[BOTTLENECK].replace("kernel:5", "kernel:4")], "kernel: Input should be 1, 3, 5, 7, 9 or 11"),
        ([KEYS[BOTTLENECK].replace("idskip:0", "idskip:1")], "a residual connection needs stride 1"),
        ([KEYS[BOTTLENECK], KEYS[BOTTLENECK] + "-se:0-hs:0"], "so expand may mean two things"),
    ],
)
def test_a_key_that_cannot_be_is_a_sentence(keys: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        operators_of(numbers(*keys))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "it is not YAML"),
        ("- 1", "it holds no mapping"),
        ("Conv: 3", "'Conv' has no mean"),
        ("Conv: {mean: 0}", "greater than 0"),
        ("Conv: {mean: .nan}", "'Conv'"),
        ("Conv: {mean: 1, var: -1}", "'Conv': variance_ms2"),
    ],
)
def test_a_yaml_file_without_latencies_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        yaml_numbers(text)


def test_nothing_is_made_of_nothing() -> None:
    assert to_numbers([], Flavour.PROXYLESSNAS) == Written({}, {})
