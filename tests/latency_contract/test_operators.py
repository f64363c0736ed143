import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from latency_contract.operators import (
    KEY_EXAMPLE,
    Activation,
    Conv,
    Head,
    IBConv,
    Layer,
    Network,
    parse_key,
    qualified_layers,
    reduced,
    squeezed_channels,
    subject_adapter,
)

Make = Callable[..., IBConv]


def mobilenet_v2() -> Network:
    """MobileNetV2 at 224x224 (Sandler et al. 2018, Table 2)."""
    operators: list[Conv | IBConv | Head] = [
        Conv(height=224, width=224, in_channels=3, out_channels=32, kernel=3, stride=2)
    ]
    for expansion, channels, repeat, stride in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for index in range(repeat):
            height, width, c_in = operators[-1].output_shape
            step = stride if index == 0 else 1
            operators.append(
                IBConv(
                    height=height, width=width, in_channels=c_in, out_channels=channels, kernel=3, stride=step,
                    expansion=expansion, residual=index > 0,
                )
            )  # fmt: skip
    operators.append(Head(height=7, width=7, in_channels=320, hidden_channels=1280, out_channels=1000))
    return Network(operators=tuple(operators))


@st.composite
def operators_in_bounds(draw: st.DrawFn) -> IBConv:
    stride = draw(st.sampled_from([1, 2]))
    c_in, c_out = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    if draw(st.booleans()):
        c_out = c_in
    return IBConv.model_validate(
        {
            "height": draw(st.integers(1, 150)),
            "width": draw(st.integers(1, 150)),
            "in_channels": c_in,
            "out_channels": c_out,
            "kernel": draw(st.sampled_from([1, 3, 5, 7, 9, 11])),
            "stride": stride,
            "expansion": draw(st.integers(1, 6)),
            "residual": stride == 1 and c_in == c_out and draw(st.booleans()),
            "activation": draw(st.sampled_from(Activation)),
            "squeeze_excite": draw(st.booleans()),
        }
    )


def test_mobilenet_v2_has_the_published_macs_and_parameters() -> None:
    network = mobilenet_v2()
    assert round(network.macs / 1e6, 1) == 300.8
    assert round(network.parameters / 1e6, 2) == 3.50


def published_layers(architecture: dict[str, Any]) -> list[Layer]:
    """Layers of a published network. Unlike an IBConv, its blocks may group the 1x1 convolutions (FBNet)."""

    def layer(c_in: int, c_out: int, kernel: int, *, side: int, stride: int = 1, groups: int = 1) -> Layer:
        return Layer("", side, side, c_in, c_out, kernel, stride, groups, Activation.NONE, True)

    side, channels = architecture["input"], architecture["stem"]
    layers = [layer(3, channels, 3, side=side, stride=2)]
    side = reduced(side, 2)
    for block in architecture["blocks"]:
        if block["op"] == "identity":
            continue
        hidden, groups = channels * block["expand"], block.get("groups", 1)
        if block["op"] == "mbconv":
            layers.append(layer(channels, hidden, 1, side=side, groups=groups))
        layers.append(layer(hidden, hidden, block["kernel"], side=side, stride=block["stride"], groups=hidden))
        side = reduced(side, block["stride"])
        layers.append(layer(hidden, block["cout"], 1, side=side, groups=groups))
        channels = block["cout"]
    head = Head(height=side, width=side, in_channels=channels, hidden_channels=architecture["head"], out_channels=1000)
    return [*layers, *head.layers]


def test_published_networks_have_the_published_macs_and_parameters(shared_data: Path) -> None:
    architectures = json.loads((shared_data / "architectures.json").read_text())["archs"]
    assert {"MobileNetV2", "ProxylessNAS-mobile", "fbnet_a"} <= {architecture["name"] for architecture in architectures}
    for architecture in architectures:
        layers = published_layers(architecture)
        counted = (sum(layer.macs for layer in layers), sum(layer.parameters for layer in layers))
        assert counted == (architecture["macs"], architecture["params"]), architecture["name"]


def test_macs_and_parameters_of_one_operator_by_hand(operator: Make) -> None:
    ibconv = operator(height=7, width=7, in_channels=4, out_channels=6, kernel=5, stride=2, expansion=3)
    assert ibconv.macs == 49 * 4 * 12 + 16 * 12 * 25 + 16 * 12 * 6
    assert ibconv.parameters == (4 * 12 + 24) + (12 * 25 + 24) + (12 * 6 + 12)


def test_expansion_1_has_no_first_convolution(operator: Make) -> None:
    assert [layer.name for layer in operator(expansion=1).layers] == ["depthwise", "project"]


def test_squeeze_excite_adds_two_biased_layers_on_one_pixel(operator: Make) -> None:
    plain, gated = operator(), operator(squeeze_excite=True)
    assert gated.macs - plain.macs == 2 * 24 * 8
    assert gated.parameters - plain.parameters == 24 * 8 + 8 + 8 * 24 + 24


@pytest.mark.parametrize(("hidden", "squeezed"), [(16, 8), (72, 24), (120, 32), (240, 64), (672, 168), (960, 240)])
def test_squeezed_channels_are_those_of_mobilenet_v3(hidden: int, squeezed: int) -> None:
    assert squeezed_channels(hidden) == squeezed


@given(operators_in_bounds())
def test_key_names_the_operator_and_nothing_else(ibconv: IBConv) -> None:
    assert parse_key(ibconv.key) == ibconv


@given(operators_in_bounds())
def test_json_round_trip_keeps_operator_and_identity(ibconv: IBConv) -> None:
    again = subject_adapter.validate_json(ibconv.model_dump_json())
    assert again == ibconv
    assert again.id == ibconv.id


def test_keys_of_stem_and_head_round_trip() -> None:
    network = mobilenet_v2()
    for edge in (network.operators[0], network.operators[-1]):
        assert parse_key(edge.key) == edge


def test_identity_of_an_operator_is_fixed() -> None:
    """A change of the canonical form would orphan every table; it must not happen unnoticed."""
    assert parse_key(KEY_EXAMPLE).id == "8ece845496c25d58603c42072b6e8907e01cf06613b5a7e24a4fe50eb4ec43a6"


@pytest.mark.parametrize("text", ["", "IBConv_K3", KEY_EXAMPLE + "x", KEY_EXAMPLE.replace("K3", "K4")])
def test_text_that_is_no_key_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an operator's key|not accepted"):
        parse_key(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"in_channels": 10**9}, "less than or equal to 8192"),
        ({"height": 0}, "greater than or equal to 1"),
        ({"kernel": 4}, "Input should be 1, 3, 5"),
        ({"in_channels": 8192, "expansion": 6}, "49,152 channels, more than the 16,384"),
        ({"height": 2048, "width": 2048, "in_channels": 64}, "805,306,368 activations, more than"),
        ({"height": 512, "width": 512, "in_channels": 64, "out_channels": 2048, "expansion": 1}, "activations"),
        ({"residual": True, "stride": 2}, "a residual connection needs stride 1"),
        ({"residual": True, "out_channels": 9}, "as many output as input channels"),
        ({"activation": "gelu"}, "Input should be 'relu'"),
    ],
)
def test_operator_out_of_bounds_is_refused_with_a_sentence(
    operator: Make, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        operator(**changes)


def test_network_too_costly_for_a_phone_is_refused(operator: Make) -> None:
    costly = operator(height=112, width=112, in_channels=256, out_channels=256, expansion=2, kernel=7)
    with pytest.raises(ValidationError, match="multiply-accumulates, more than"):
        Network(operators=(costly,) * 8)


def test_operators_of_a_network_must_chain(operator: Make) -> None:
    with pytest.raises(
        ValidationError, match=r"operator 1 .* expects input \(8, 8, 8\), but operator 0 .* \(4, 4, 8\)"
    ):
        Network(operators=(operator(stride=2), operator()))


def test_layers_of_a_network_are_named_by_operator(operator: Make) -> None:
    names = [name for name, _ in qualified_layers(Network(operators=(operator(), operator(expansion=1))))]
    assert names == ["0.expand", "0.depthwise", "0.project", "1.depthwise", "1.project"]
