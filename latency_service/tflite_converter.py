"""From a subject to the bytes of its TFLite model. The one module that imports TensorFlow.

It runs in a process of its own (see converter.py): the import takes seconds and half a gigabyte. The model is built
from `operator.layers`, as the PyTorch module is, with batch normalisation already folded into weight and bias.
"""

import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow speaks of GPUs and kernels when it is imported
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # and would take a GPU's memory for nothing

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from latency_contract.model_files import TFLiteModel
from latency_contract.operators import (
    Activation,
    Conv,
    Head,
    IBConv,
    Layer,
    Network,
    qualified_layers,
    subject_adapter,
)
from latency_service.errors import ConversionFailed

Float32 = NDArray[np.float32]
Weights = Mapping[str, tuple[Float32, Float32]]  # layer name -> weight (out, in / groups, k, k), bias (out,)

ACTIVATIONS: dict[Activation, Any] = {
    Activation.RELU: tf.nn.relu,
    Activation.RELU6: tf.nn.relu6,
    Activation.HSWISH: lambda x: x * (tf.nn.relu6(x + 3.0) * (1.0 / 6.0)),
    Activation.NONE: lambda x: x,
}


def random_weights(subject: IBConv | Conv | Head | Network) -> dict[str, tuple[Float32, Float32]]:
    """Weights for a model that is only timed: dense, of the variance that keeps activations in range, reproducible.

    Zeros or constants would let a converter or runtime skip work; exploding or vanishing activations would meet
    infinities or denormal numbers, which are slow.
    """
    random = np.random.default_rng(int(subject.id[:16], 16))
    weights = {}
    for name, layer in qualified_layers(subject):
        fan_in = layer.weight_shape[1] * layer.kernel**2
        weight = random.standard_normal(layer.weight_shape, dtype=np.float32) * np.float32((2 / fan_in) ** 0.5)
        weights[name] = (weight, random.standard_normal(layer.out_channels, dtype=np.float32) * np.float32(0.1))
    return weights


def convert(subject: IBConv | Conv | Head | Network, weights: Weights | None = None) -> bytes:
    """TFLite model of a subject in float32: input (1, height, width, channels), one output.

    `weights` are named as by `qualified_layers`; without them, they are random.

    Raises:
        ConversionFailed: TensorFlow refuses the model.
    """
    chosen = random_weights(subject) if weights is None else weights
    operators = subject.operators if isinstance(subject, Network) else (subject,)
    first = operators[0]

    def forward(x: Any) -> Any:
        for index, operator in enumerate(operators):
            named = {layer.name: (layer, *chosen[f"{index}.{layer.name}"]) for layer in operator.layers}
            x = _OPERATORS[type(operator)](x, operator, named)
        return x

    signature = [tf.TensorSpec((1, first.height, first.width, first.in_channels), tf.float32, name="input")]
    try:
        concrete = tf.function(forward, input_signature=signature).get_concrete_function()
        converted: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()
    except Exception as error:
        raise ConversionFailed(f"TensorFlow cannot convert {subject.key}: {error}") from error
    return converted


def convert_document(document: str, precision: str, weights: Weights | None = None) -> bytes:
    """`convert` for a subject's JSON: what the converter's process is asked to do."""
    if precision != "float32":
        raise ConversionFailed(f"Precision '{precision}' cannot be converted yet; use float32.")
    subject = subject_adapter.validate_json(document)
    assert not isinstance(subject, TFLiteModel), "a file that was given is its own model"
    return convert(subject, weights)


_Named = dict[str, tuple[Layer, Float32, Float32]]


def _conv(x: Any, layer: Layer, weight: Float32, bias: Float32) -> Any:
    """(1, H, W, in) -> (1, H / stride, W / stride, out), activation included."""
    if layer.groups == 1:
        y = tf.nn.conv2d(x, weight.transpose(2, 3, 1, 0), layer.stride, "SAME")
    else:
        strides = (1, layer.stride, layer.stride, 1)
        y = tf.nn.depthwise_conv2d(x, weight.transpose(2, 3, 0, 1), strides, "SAME")
    return ACTIVATIONS[layer.activation](tf.nn.bias_add(y, bias))


def _apply_conv(x: Any, operator: Conv, named: _Named) -> Any:  # noqa: ARG001
    return _conv(x, *named["conv"])


def _apply_ibconv(x: Any, operator: IBConv, named: _Named) -> Any:
    y = _conv(x, *named["expand"]) if "expand" in named else x
    y = _conv(y, *named["depthwise"])
    if operator.squeeze_excite:
        gate = _conv(tf.reduce_mean(y, (1, 2), keepdims=True), *named["squeeze"])  # (1, 1, 1, squeezed)
        gate = _conv(gate, *named["excite"])  # (1, 1, 1, hidden)
        y = y * (tf.nn.relu6(gate + 3.0) * (1.0 / 6.0))
    y = _conv(y, *named["project"])
    return x + y if operator.residual else y


def _apply_head(x: Any, operator: Head, named: _Named) -> Any:  # noqa: ARG001
    y = tf.reduce_mean(_conv(x, *named["conv"]), (1, 2))  # (1, hidden)
    _, weight, bias = named["linear"]
    return tf.nn.bias_add(tf.matmul(y, weight[:, :, 0, 0].T), bias)  # (1, classes)


_OPERATORS: dict[type[IBConv | Conv | Head], Any] = {Conv: _apply_conv, IBConv: _apply_ibconv, Head: _apply_head}
