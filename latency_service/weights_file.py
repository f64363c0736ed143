"""A network with its weights, as one safetensors file: what `POST /v1/conversions` is sent.

The metadata's `subject` is the network's canonical JSON. The tensors are named after its layers, as `qualified_layers`
does: `INDEX.NAME.weight` of the layer's weight shape and `INDEX.NAME.bias` of shape (out_channels,), float32, with
batch normalisation folded in.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from latency_contract.errors import validation_sentence
from latency_contract.operators import MAX_PARAMETERS, Network, qualified_layers
from latency_service.errors import InvalidWeights

MAX_BODY_BYTES = 4 * MAX_PARAMETERS + 2**20  # float32 weights of the largest network, and names, shapes and network
LENGTH_BYTES = 8  # a safetensors file begins with the length of its header, little-endian

LayerWeights = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]  # layer name -> weight, bias


class TrainedNetwork(NamedTuple):
    network: Network
    weights: LayerWeights


def parse(content: bytes) -> TrainedNetwork:
    """The network and its weights.

    Raises:
        InvalidWeights: no such file, or weights that are not this network's: other names, shapes, types, or a value
            that is not finite.
    """
    try:
        tensors = load(content)
        header: dict[str, Any] = json.loads(content[LENGTH_BYTES:][: int.from_bytes(content[:LENGTH_BYTES], "little")])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidWeights(f"The body is not a safetensors file of float32 tensors: {error}.") from error
    network = _network(header.pop("__metadata__", {}).get("subject", ""))
    layers = dict(qualified_layers(network))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        shapes |= {f"{name}.weight": layer.weight_shape, f"{name}.bias": (layer.out_channels,)}
    _must_fit(tensors, shapes)
    return TrainedNetwork(network, {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in layers})


def _network(document: str) -> Network:
    try:
        return Network.model_validate_json(document)
    except ValidationError as error:
        raise InvalidWeights(
            f"The file's metadata has no network as its 'subject': {validation_sentence(error.errors())}."
            " Put the network's canonical JSON there."
        ) from error


def _must_fit(tensors: dict[str, NDArray[Any]], shapes: dict[str, tuple[int, ...]]) -> None:
    """The first five faults, where there are any."""
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    faults += [f"{name} is none of the network's" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        tensor = tensors[name]
        if tensor.shape != shapes[name]:
            faults.append(f"{name} has shape {tensor.shape}, not {shapes[name]}")
        elif tensor.dtype != np.float32:
            faults.append(f"{name} is of {tensor.dtype}, not float32")
        elif not np.isfinite(tensor).all():
            faults.append(f"{name} holds values that are not finite")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InvalidWeights(f"The weights are not those of the network: {'; '.join(sorted(faults)[:5])}{more}.")
