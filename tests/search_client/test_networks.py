from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from latency_contract.operators import Activation, Conv, Head, IBConv, Network, qualified_layers
from search_client.networks import (
    BATCH_NORM_EPSILON,
    build_network,
    build_operator,
    inference_weights,
    same_padding,
)
from search_client.spaces import load_space

TINY = str(Path(__file__).with_name("tiny.toml"))

SQUEEZED = Network(
    operators=(
        Conv(height=9, width=12, in_channels=3, out_channels=8, kernel=3, stride=2, activation=Activation.HSWISH),
        IBConv(
            height=5, width=6, in_channels=8, out_channels=8, kernel=5, stride=1, expansion=3, residual=True,
            activation=Activation.HSWISH, squeeze_excite=True,
        ),
        IBConv(
            height=5, width=6, in_channels=8, out_channels=12, kernel=3, stride=2, expansion=1, residual=False,
            activation=Activation.RELU,
        ),
        Head(height=3, width=3, in_channels=12, hidden_channels=16, out_channels=5),
    )
)  # fmt: skip


def trained_like(network: Network, *, affine: bool) -> nn.Sequential:
    """A network whose statistics, scales and shifts are none of the defaults."""
    module = build_network(network, affine=affine)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            if affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.2)
    return module.eval()


def recomputed(network: Network, weights: dict[str, tuple[np.ndarray, np.ndarray]], x: Tensor) -> Tensor:
    """The network written out by hand over folded weights."""
    activations = {
        Activation.RELU: lambda x: x.clamp(min=0),
        Activation.RELU6: lambda x: x.clamp(0, 6),
        Activation.HSWISH: lambda x: x * (x + 3).clamp(0, 6) / 6,
        Activation.NONE: lambda x: x,
    }
    for index, operator in enumerate(network.operators):
        y = gated = x
        for layer in operator.layers:
            if layer.name == "squeeze":
                gated, y = y, y.mean((2, 3), keepdim=True)
            if layer.name == "linear":
                y = y.mean((2, 3), keepdim=True)
            weight, bias = (torch.from_numpy(array) for array in weights[f"{index}.{layer.name}"])
            top, bottom = same_padding(y.shape[2], kernel=layer.kernel, stride=layer.stride)
            left, right = same_padding(y.shape[3], kernel=layer.kernel, stride=layer.stride)
            y = F.conv2d(F.pad(y, (left, right, top, bottom)), weight, bias, stride=layer.stride, groups=layer.groups)
            y = activations[layer.activation](y)
            if layer.name == "excite":
                y = gated * (y + 3).clamp(0, 6) / 6
        x = x + y if isinstance(operator, IBConv) and operator.residual else y
    return x.flatten(1)


@given(side=st.integers(1, 64), kernel=st.sampled_from([1, 3, 5, 7]), stride=st.sampled_from([1, 2]))
def test_padding_is_tensorflows_same(side: int, kernel: int, stride: int) -> None:
    # TensorFlow's documentation states the rule by the remainder of the side.
    remainder = side % stride
    total = max(kernel - stride, 0) if remainder == 0 else max(kernel - remainder, 0)
    before, after = same_padding(side, kernel=kernel, stride=stride)
    assert before == total // 2
    assert before + after == total


def test_even_side_with_stride_two_is_padded_after_only() -> None:
    assert same_padding(224, kernel=3, stride=2) == (0, 1)
    assert same_padding(224, kernel=7, stride=2) == (2, 3)
    assert same_padding(7, kernel=3, stride=2) == (1, 1)


def test_parameters_are_those_that_the_contract_counts() -> None:
    rng = np.random.default_rng(0)
    space = load_space("basic", input_size=64, classes=20)
    networks = [space.network(space.sample(rng)), load_space("demo").network(load_space("demo").sample(rng)), SQUEEZED]
    for network in networks:
        module = build_network(network)
        assert sum(parameter.numel() for parameter in module.parameters()) == network.parameters


def test_without_affine_only_convolutions_are_trained() -> None:
    weights = sum(layer.weights for layer in SQUEEZED.layers)
    biases = sum(layer.out_channels for layer in SQUEEZED.layers if not layer.batch_norm)
    module = build_network(SQUEEZED, affine=False)
    assert sum(parameter.numel() for parameter in module.parameters()) == weights + biases


@pytest.mark.parametrize("height", [7, 8])
def test_every_operator_gives_the_shape_that_it_says(height: int) -> None:
    operators: list[Conv | IBConv] = [
        Conv(height=height, width=9, in_channels=3, out_channels=8, kernel=3, stride=2),
        *(
            IBConv(
                height=height, width=9, in_channels=3, out_channels=8, kernel=kernel, stride=stride, expansion=2,
                residual=False,
            )
            for kernel in (3, 5, 7)
            for stride in (1, 2)
        ),
    ]  # fmt: skip
    for operator in operators:
        out_height, out_width, channels = operator.output_shape
        y = build_operator(operator, affine=True)(torch.zeros(2, 3, height, 9))
        assert y.shape == (2, channels, out_height, out_width)


def test_a_network_gives_one_logit_per_class() -> None:
    assert build_network(SQUEEZED)(torch.zeros(2, 3, 9, 12)).shape == (2, 5)


@pytest.mark.parametrize("affine", [True, False])
def test_folded_weights_give_the_same_logits(affine: bool) -> None:
    torch.manual_seed(0)
    space = load_space(TINY)
    for network in (SQUEEZED, space.network(("IBConv_K5_E1", "IBConv_K5_E2", "Identity", "IBConv_K3_E1"))):
        module = trained_like(network, affine=affine)
        stem = network.operators[0]
        x = torch.randn(4, 3, stem.height, stem.width)
        with torch.no_grad():
            logits = module(x)
        expected = recomputed(network, inference_weights(module, network), x)
        assert logits.std() > 1e-3
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_folding_uses_the_running_statistics() -> None:
    module = trained_like(SQUEEZED, affine=True)
    layer = module.get_submodule("0.conv")
    weight, bias = inference_weights(module, SQUEEZED)["0.conv"]
    norm = layer.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    deviation = torch.sqrt(norm.running_var + BATCH_NORM_EPSILON)
    expected = norm.bias - norm.running_mean * norm.weight / deviation
    np.testing.assert_allclose(bias, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert weight.dtype == bias.dtype == np.float32


def test_weights_are_named_and_shaped_as_the_contract_says() -> None:
    weights = inference_weights(build_network(SQUEEZED), SQUEEZED)
    assert {name: weight.shape for name, (weight, _) in weights.items()} == {
        name: layer.weight_shape for name, layer in qualified_layers(SQUEEZED)
    }
    assert all(bias.shape == weight.shape[:1] for weight, bias in weights.values())
