"""The network that is counted, trained, converted and measured is one network (invariant 6 of the design).

Each operator is built twice from its layers: as a PyTorch module with trained-looking batch-norm statistics, and as a
TFLite model with the very same weights, run by the real LiteRT interpreter.
"""

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from torch import nn

from latency_contract.operators import Activation, Conv, Head, IBConv, Network
from latency_service.tflite_converter import convert
from search_client.networks import build_network, inference_weights
from search_client.spaces import load_space

TOLERANCE = 1e-4

DEMO = load_space("demo")
CHOICES = {operator.key: operator for operator in DEMO.operators()}
# What the demo space has not: other activations, squeeze-and-excitation, expansion 1, odd sides under stride 2.
OTHERS = {
    operator.key: operator
    for operator in (
        IBConv(
            height=14, width=14, in_channels=16, out_channels=16, kernel=5, stride=1, expansion=4, residual=True,
            activation=Activation.HSWISH, squeeze_excite=True,
        ),
        IBConv(
            height=15, width=13, in_channels=8, out_channels=12, kernel=3, stride=2, expansion=1, residual=False,
            activation=Activation.RELU,
        ),
        IBConv(
            height=9, width=10, in_channels=8, out_channels=12, kernel=7, stride=2, expansion=3, residual=False,
        ),
        Conv(height=17, width=16, in_channels=3, out_channels=8, kernel=3, stride=2),
        Conv(height=8, width=8, in_channels=8, out_channels=16, kernel=1, stride=2, activation=Activation.NONE),
    )
}  # fmt: skip


def module_with_statistics(network: Network) -> nn.Module:
    """Fresh weights, and batch-norm scale, shift and statistics that are not those of a fresh module."""
    torch.manual_seed(0)
    module = build_network(network)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def run_tflite(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Output of one image (1, H, W, C)."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    output: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return output


def largest_difference(network: Network) -> float:
    """Between the outputs of PyTorch and TFLite for one image, relative to the largest output."""
    module = module_with_statistics(network)
    first = network.operators[0]
    image = np.random.default_rng(0).standard_normal((1, first.height, first.width, first.in_channels), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
    if expected.ndim == 4:
        expected = expected.transpose(0, 2, 3, 1)  # (1, H, W, C)
    got = run_tflite(convert(network, inference_weights(module, network)), image)
    assert got.shape == expected.shape
    assert np.abs(expected).max() > 0.01, "an output of zeros would agree with anything"
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("key", [*CHOICES, *OTHERS])
def test_pytorch_and_tflite_agree_on_an_operator(key: str) -> None:
    operator: Conv | IBConv | Head = (CHOICES | OTHERS)[key]
    assert largest_difference(Network(operators=(operator,))) < TOLERANCE


def test_pytorch_and_tflite_agree_on_a_whole_network() -> None:
    architecture = DEMO.sample(np.random.default_rng(0))
    assert largest_difference(DEMO.network(architecture)) < TOLERANCE


def test_the_module_has_the_parameters_that_are_counted() -> None:
    network = DEMO.network(DEMO.sample(np.random.default_rng(0)))
    trainable = sum(parameter.numel() for parameter in build_network(network).parameters())
    assert trainable == network.parameters
