"""TuNAS's latency model of a phone: a bias, and an offset in ms for each choice in each layer.

Bender et al., "Can Weight Sharing Outperform Random Architecture Search? An Investigation With TuNAS" (CVPR 2020), and
`tunas/` of github.com/google-research/google-research. The offsets come as CSV, one line a choice (layer, hw, cin,
cout, stride, op, kernel, expand, coef_ms); the bias stands in a JSON file beside it (`bias_ms`). TuNAS's ProxylessNAS
space is the space `basic`; stem and head, which the CSV does not list, are in the bias.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, Field

from search_client.imported_tables import LinearLayer, LinearModel, Source
from search_client.spaces import IDENTITY, load_space

SPACE = "basic"
COLUMNS = ("layer", "hw", "cin", "cout", "stride", "op", "kernel", "expand", "coef_ms")


class _Bias(BaseModel):
    """The file may say more."""

    bias_ms: Annotated[float, Field(allow_inf_nan=False)]


def bias_ms(text: str) -> float:
    """Of the JSON file. Raises ValueError."""
    return _Bias.model_validate_json(text).bias_ms


def linear_model(
    lines: Iterable[Mapping[str, str]], *, bias_ms: float, device_model: str, source: Source
) -> LinearModel:
    """The model that the CSV's lines and its bias make.

    Raises:
        ValueError: a line that cannot be read, or other layers or choices than those of the space.
    """
    space = load_space(SPACE)
    offsets: dict[int, dict[str, float]] = {}
    for line in lines:
        index, choice = int(line["layer"]), _choice(line)
        if not 0 <= index < len(space.layers):
            raise ValueError(f"it has a layer {index}, but the space '{SPACE}' has {len(space.layers)} from 0 on")
        layer = space.layers[index]
        shape = (layer.height, layer.in_channels, layer.out_channels, layer.stride)
        stated = tuple(int(line[name]) for name in ("hw", "cin", "cout", "stride"))
        if stated != shape:
            raise ValueError(f"layer {index} is {stated} (hw, cin, cout, stride), but {shape} in the space '{SPACE}'")
        if choice in offsets.setdefault(index, {}):
            raise ValueError(f"layer {index} has {choice} twice")
        offsets[index][choice] = float(line["coef_ms"])
    layers = []
    for index, layer in enumerate(space.layers):
        found = offsets.get(index, {})
        if set(found) != set(layer.choices):
            raise ValueError(
                f"layer {index} has {_named(found)}, but the space '{SPACE}' offers {_named(layer.choices)} there"
            )
        layers.append(
            LinearLayer(
                name=layer.name,
                height=layer.height,
                width=layer.width,
                in_channels=layer.in_channels,
                out_channels=layer.out_channels,
                stride=layer.stride,
                coefficients_ms={choice: found[choice] for choice in layer.choices},
            )
        )
    return LinearModel(
        device_model=device_model,
        source=source,
        space_name=space.name,
        stem=space.stem,
        layers=tuple(layers),
        head=space.head,
        activation=space.activation,
        bias_ms=bias_ms,
    )


def _choice(line: Mapping[str, str]) -> str:
    match line["op"]:
        case "identity":
            return IDENTITY
        case "sepconv" | "mbconv":  # a sepconv is a bottleneck with expansion 1
            return f"IBConv_K{int(line['kernel'])}_E{int(line['expand'])}"
        case unknown:
            raise ValueError(f"'{unknown}' is no operator of TuNAS's ProxylessNAS space")


def _named(choices: Iterable[str]) -> str:
    return ", ".join(sorted(choices)) or "nothing"
