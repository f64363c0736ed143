"""PyTorch modules made from the contract's operators.

A module is built from `operator.layers`, the list that counts and the TFLite converter use as well, and names its
layers like `qualified_layers` does. What is counted, trained, converted and measured is therefore one network.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latency_contract.operators import Activation, Conv, Head, IBConv, Layer, Network, qualified_layers, reduced

BATCH_NORM_EPSILON = 1e-5  # PyTorch's default; folded into the weights before conversion
CLASSIFIER_DEVIATION = 0.01  # of the linear layer's initial weights, as in MobileNetV2

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: F.relu,
    Activation.RELU6: F.relu6,
    Activation.HSWISH: F.hardswish,  # x * relu6(x + 3) / 6
    Activation.NONE: lambda x: x,
}


def same_padding(side: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side of the input under TensorFlow's "SAME": the odd one comes after."""
    total = max((reduced(side, stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class ConvLayer(nn.Module):
    """One weighted layer: "SAME" convolution, batch normalisation or bias, activation.

    Maps (N, in_channels, height, width) to (N, out_channels, ceil(height / stride), ceil(width / stride)). A linear
    layer is a 1x1 convolution of a 1x1 image. Weights are drawn from PyTorch's global generator (He et al., fan-out).
    """

    def __init__(self, layer: Layer, *, affine: bool) -> None:
        super().__init__()
        top, bottom = same_padding(layer.height, kernel=layer.kernel, stride=layer.stride)
        left, right = same_padding(layer.width, kernel=layer.kernel, stride=layer.stride)
        symmetric = top == bottom and left == right
        self.uneven_padding = None if symmetric else (left, right, top, bottom)
        self.conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            stride=layer.stride,
            padding=(top, left) if symmetric else 0,
            groups=layer.groups,
            bias=not layer.batch_norm,
        )
        self.norm = (
            nn.BatchNorm2d(layer.out_channels, eps=BATCH_NORM_EPSILON, affine=affine) if layer.batch_norm else None
        )
        self.activation = ACTIVATIONS[layer.activation]
        fan_out = layer.kernel**2 * layer.out_channels // layer.groups
        nn.init.normal_(self.conv.weight, std=(2 / fan_out) ** 0.5)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.uneven_padding is not None:
            x = F.pad(x, self.uneven_padding)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x)


class InvertedBottleneck(nn.Module):
    """IBConv: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, operator: IBConv, *, affine: bool) -> None:
        super().__init__()
        layers = {layer.name: ConvLayer(layer, affine=affine) for layer in operator.layers}
        self.expand = layers.get("expand")
        self.depthwise = layers["depthwise"]
        self.squeeze = layers.get("squeeze")
        self.excite = layers.get("excite")
        self.project = layers["project"]
        self.residual = operator.residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)  # (N, hidden, H', W')
        if self.squeeze is not None and self.excite is not None:
            pooled = y.mean(dim=(2, 3), keepdim=True)  # (N, hidden, 1, 1)
            y = y * F.hardsigmoid(self.excite(self.squeeze(pooled)))  # relu6(x + 3) / 6
        y = self.project(y)
        if self.residual:
            y = y + x
        return y


class Classifier(nn.Module):
    """Head: (N, in_channels, H, W) to logits (N, classes)."""

    def __init__(self, operator: Head, *, affine: bool) -> None:
        super().__init__()
        conv, linear = operator.layers
        self.conv = ConvLayer(conv, affine=affine)
        self.linear = ConvLayer(linear, affine=affine)
        nn.init.normal_(self.linear.conv.weight, std=CLASSIFIER_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean(dim=(2, 3), keepdim=True)  # (N, hidden, 1, 1)
        return torch.flatten(self.linear(pooled), start_dim=1)


def build_operator(operator: Conv | IBConv | Head, *, affine: bool) -> nn.Module:
    """The operator with fresh weights; `affine` gives batch normalisation a trainable scale and shift."""
    if isinstance(operator, IBConv):
        return InvertedBottleneck(operator, affine=affine)
    if isinstance(operator, Head):
        return Classifier(operator, affine=affine)
    (layer,) = operator.layers
    return nn.Sequential(OrderedDict({layer.name: ConvLayer(layer, affine=affine)}))


def build_network(network: Network, *, affine: bool = True) -> nn.Sequential:
    """The network with fresh weights; its submodules are named INDEX.NAME, as `qualified_layers` names layers."""
    return nn.Sequential(*(build_operator(operator, affine=affine) for operator in network.operators))


def inference_weights(
    module: nn.Module, network: Network
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weight and bias of every layer, with the running statistics of its batch normalisation folded in.

        weight' = weight * scale / sqrt(variance + eps)
        bias'   = shift - mean * scale / sqrt(variance + eps)

    Args:
        module: what `build_network` or `Supernet.candidate` made for this network.

    Returns:
        By the names of `qualified_layers`: weight of `Layer.weight_shape`, bias of shape (out_channels,).
    """
    weights = {}
    for name, layer in qualified_layers(network):
        conv_layer = module.get_submodule(name)
        assert isinstance(conv_layer, ConvLayer)
        weight, bias = _folded(conv_layer)
        assert weight.shape == layer.weight_shape
        weights[name] = (weight.cpu().float().numpy(), bias.cpu().float().numpy())
    return weights


@torch.no_grad()
def _folded(layer: ConvLayer) -> tuple[Tensor, Tensor]:
    weight = layer.conv.weight.double()
    if layer.norm is None:
        assert layer.conv.bias is not None
        return weight, layer.conv.bias.double()
    norm = layer.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() if norm.affine else torch.ones_like(mean)
    shift = norm.bias.double() if norm.affine else torch.zeros_like(mean)
    factor = scale / torch.sqrt(variance + norm.eps)
    return weight * factor[:, None, None, None], shift - mean * factor
