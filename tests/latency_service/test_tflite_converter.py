"""Real TensorFlow models, run by the real LiteRT interpreter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from latency_contract.operators import Activation, Conv, Head, IBConv, Network
from latency_service.errors import ConversionFailed
from latency_service.tflite_converter import convert, convert_document, random_weights

Make = Callable[..., IBConv]


def interpreter(model: bytes) -> Any:
    """Without delegates, so that the operations listed are those of the file."""
    loaded = Interpreter(
        model_content=model,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    loaded.allocate_tensors()
    return loaded


def operations(model: bytes) -> list[str]:
    return [details["op_name"] for details in interpreter(model)._get_ops_details()]


def test_an_inverted_bottleneck_is_three_convolutions_with_fused_activations(operator: Make) -> None:
    assert operations(convert(operator())) == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D"]


def test_a_residual_is_one_addition(operator: Make) -> None:
    assert operations(convert(operator(residual=True))) == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD"]


def test_stride_2_needs_no_padding_operation(operator: Make) -> None:
    model = convert(operator(stride=2, kernel=5))
    assert operations(model) == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D"]
    assert interpreter(model).get_output_details()[0]["shape"].tolist() == [1, 4, 4, 8]


def test_expansion_1_has_no_first_convolution(operator: Make) -> None:
    assert operations(convert(operator(expansion=1))) == ["DEPTHWISE_CONV_2D", "CONV_2D"]


def test_squeeze_excite_and_hswish_convert(operator: Make) -> None:
    names = operations(convert(operator(squeeze_excite=True, activation=Activation.HSWISH)))
    assert names.count("CONV_2D") == 4
    assert "MEAN" in names


def test_no_layer_of_a_network_is_compressed_away(operator: Make) -> None:
    stem = Conv(height=16, width=16, in_channels=3, out_channels=8, kernel=3, stride=2)
    head = Head(height=8, width=8, in_channels=8, hidden_channels=16, out_channels=10)
    network = Network(operators=(stem, operator(residual=True), operator(), head))
    names = operations(convert(network))
    assert sum(name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for name in names) == len(network.layers)


def test_the_same_subject_gives_the_same_bytes(operator: Make) -> None:
    assert convert(operator()) == convert(operator())


def test_random_weights_keep_the_output_in_range(operator: Make) -> None:
    """Neither zero nor exploding: both would change how long the arithmetic takes."""
    deep = Network(operators=(operator(residual=True),) * 12)
    loaded = interpreter(convert(deep))
    image = np.random.default_rng(0).standard_normal((1, 8, 8, 8), dtype=np.float32)
    loaded.set_tensor(loaded.get_input_details()[0]["index"], image)
    loaded.invoke()
    spread = float(np.std(loaded.get_tensor(loaded.get_output_details()[0]["index"])))
    assert 0.1 < spread < 1000


def test_given_weights_are_used(operator: Make) -> None:
    ibconv = operator()
    zeros = {name: (weight * 0, bias * 0 + 7) for name, (weight, bias) in random_weights(ibconv).items()}
    loaded = interpreter(convert(ibconv, zeros))
    details = loaded.get_input_details()[0]
    loaded.set_tensor(details["index"], np.zeros(details["shape"], np.float32))  # what is not set may be NaN
    loaded.invoke()
    assert np.allclose(loaded.get_tensor(loaded.get_output_details()[0]["index"]), 7)


def test_weights_of_another_shape_are_refused(operator: Make) -> None:
    with pytest.raises(ConversionFailed, match="TensorFlow cannot convert IBConv_K3_E3"):
        convert(operator(), random_weights(operator(in_channels=16)))


def test_a_precision_that_cannot_be_converted_is_refused(operator: Make) -> None:
    with pytest.raises(ConversionFailed, match="Precision 'int8' cannot be converted yet"):
        convert_document(operator().model_dump_json(), "int8")
