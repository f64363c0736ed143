"""Search spaces: which operators each layer of the network may use (Tables 1 and 2 of the paper).

A space is data, a TOML file like those in `space_files/`; pruning a space gives a smaller one. An architecture is
one choice per layer.
"""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from latency_contract.canonical import Contract
from latency_contract.errors import validation_sentence
from latency_contract.operators import (
    Activation,
    Channels,
    Conv,
    Head,
    IBConv,
    Kernel,
    Network,
    Side,
    Stride,
    reduced,
    rounded_channels,
)
from search_client.errors import InvalidSpace

MAX_WIDTH = 8.0  # times the channels of a space's file
IDENTITY = "Identity"  # the absence of an operator

Architecture = tuple[str, ...]  # the name of one choice per layer

_CONV = re.compile(r"Conv_K(?P<kernel>\d+)")
_IBCONV = re.compile(r"IBConv_K(?P<kernel>\d+)_E(?P<expansion>\d+)(?P<squeeze_excite>_SE)?")
_BUILTIN = resources.files("search_client") / "space_files"


@dataclass(frozen=True)
class SpaceLayer:
    """One layer of the supernet (one SBS of Table 1) and the names of its choices."""

    name: str  # blockB.L, both counted from 1
    height: int  # of the input
    width: int
    in_channels: int
    out_channels: int
    stride: int
    choices: tuple[str, ...]  # IBConv_KX_EY (with _SE: squeeze-and-excitation), Conv_KX (linear) or Identity


@dataclass(frozen=True)
class SearchSpace:
    """A network whose stem and head are fixed and whose layers are chosen."""

    name: str
    stem: Conv
    layers: tuple[SpaceLayer, ...]
    head: Head
    activation: Activation

    @cached_property
    def size(self) -> int:
        """Number of architectures."""
        return math.prod(len(layer.choices) for layer in self.layers)

    def operator(self, layer_index: int, choice: str) -> IBConv | Conv | None:
        """The operator that a choice stands for; None for Identity. Residual wherever the shapes allow it.

        Raises:
            InvalidSpace: the choice is not a known name, or its operator is out of bounds.
        """
        if choice == IDENTITY:
            return None
        layer = self.layers[layer_index]
        shape = {
            "height": layer.height,
            "width": layer.width,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "stride": layer.stride,
        }
        try:
            if match := _IBCONV.fullmatch(choice):
                return IBConv.model_validate(
                    shape
                    | {
                        "kernel": int(match["kernel"]),
                        "expansion": int(match["expansion"]),
                        "residual": layer.stride == 1 and layer.in_channels == layer.out_channels,
                        "activation": self.activation,
                        "squeeze_excite": match["squeeze_excite"] is not None,
                    }
                )
            if match := _CONV.fullmatch(choice):
                return Conv.model_validate(shape | {"kernel": int(match["kernel"]), "activation": Activation.NONE})
        except ValidationError as error:
            raise InvalidSpace(
                f"'{choice}' cannot be used in {layer.name}: {validation_sentence(error.errors())}."
            ) from error
        raise InvalidSpace(
            f"'{choice}' is not a choice; a choice reads like IBConv_K3_E6, IBConv_K3_E6_SE, Conv_K1 or {IDENTITY}."
        )

    def network(self, architecture: Architecture) -> Network:
        """Stem, chosen operators, head."""
        chosen = [self.operator(index, choice) for index, choice in enumerate(architecture)]
        return Network(operators=(self.stem, *(operator for operator in chosen if operator), self.head))

    def operators(self) -> tuple[Conv | IBConv | Head, ...]:
        """Every distinct operator, stem and head included, in network order: what a latency table has to hold."""
        return tuple(dict.fromkeys(self._choosable()))

    def layers_of_operators(self) -> dict[str, int]:
        """In how many layers each operator is a choice, by its id."""
        return dict(Counter(operator.id for operator in self._choosable()))

    def _choosable(self) -> list[Conv | IBConv | Head]:
        """Stem, every operator of every layer, head: one that several layers offer is there as often."""
        chosen = [
            operator
            for index, layer in enumerate(self.layers)
            for choice in layer.choices
            if (operator := self.operator(index, choice)) is not None
        ]
        return [self.stem, *chosen, self.head]

    def restricted(self, choices: Sequence[Sequence[str]]) -> "SearchSpace":
        """The space with only these choices per layer, in the order that this space lists them.

        Raises:
            InvalidSpace: a layer would be empty, or does not offer a choice.
        """
        layers = []
        for layer, kept in zip(self.layers, choices, strict=True):
            if unknown := set(kept) - set(layer.choices):
                raise InvalidSpace(
                    f"{layer.name} does not offer {', '.join(sorted(unknown))}. It offers {', '.join(layer.choices)}."
                )
            if not kept:
                raise InvalidSpace(f"{layer.name} would have no choice left; keep at least one.")
            layers.append(replace(layer, choices=tuple(choice for choice in layer.choices if choice in kept)))
        return replace(self, layers=tuple(layers))

    def with_classes(self, classes: int) -> "SearchSpace":
        """The space for data of so many classes. Raises InvalidSpace where no head has so many."""
        try:
            return replace(self, head=Head.model_validate(self.head.model_dump() | {"out_channels": classes}))
        except ValidationError as error:
            raise InvalidSpace(f"{classes} classes are too many: {validation_sentence(error.errors())}.") from error

    def sample(self, rng: np.random.Generator) -> Architecture:
        """An architecture drawn uniformly, layer by layer."""
        return tuple(layer.choices[rng.integers(len(layer.choices))] for layer in self.layers)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "SearchSpace":
        """What `to_json` made."""
        return cls(
            document["name"],
            Conv.model_validate(document["stem"]),
            tuple(SpaceLayer(**layer | {"choices": tuple(layer["choices"])}) for layer in document["layers"]),
            Head.model_validate(document["head"]),
            Activation(document["activation"]),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stem": self.stem.model_dump(mode="json"),
            "layers": [asdict(layer) | {"choices": list(layer.choices)} for layer in self.layers],
            "head": self.head.model_dump(mode="json"),
            "activation": self.activation.value,
        }


class _Stem(Contract):
    channels: Channels
    kernel: Kernel
    stride: Stride


class _Block(Contract):
    channels: Channels
    repeat: Annotated[int, Field(ge=1)]  # layers; the first has the block's stride, the others 1
    stride: Stride
    choices: tuple[str, ...] | None = None  # default: the space's
    first_choices: tuple[str, ...] | None = None  # of the first layer; default: the block's choices


class _Head(Contract):
    channels: Channels


class _SpaceFile(Contract):
    """A TOML file that describes a space."""

    name: Annotated[str, Field(min_length=1)]
    input_size: Side
    classes: Channels
    activation: Activation
    choices: tuple[str, ...] = ()  # of every block that lists none
    stem: _Stem
    blocks: Annotated[tuple[_Block, ...], Field(min_length=1)]
    head: _Head
    recipe: dict[str, Any] = Field(default_factory=dict)


def builtin_spaces() -> tuple[str, ...]:
    """Names of the spaces that come with the program."""
    return tuple(sorted(Path(file.name).stem for file in _BUILTIN.iterdir() if file.name.endswith(".toml")))


def load_space(
    name_or_path: str, *, input_size: int | None = None, width: float = 1.0, classes: int | None = None
) -> SearchSpace:
    """A built-in space by name, or one from a TOML file, for square RGB images.

    Identity is dropped from the first layer of each block, where the shape changes (section 4.1 of the paper).

    Args:
        input_size: pixels of a side, instead of the file's.
        width: multiplies the channels of every layer, as in MobileNetV2; those of the head only where it is above 1.
        classes: number of classes, instead of the file's.

    Raises:
        InvalidSpace: no such space, or one that does not describe a network.
    """
    overrides = {"input_size": input_size, "classes": classes}
    description = _read(name_or_path, **{key: value for key, value in overrides.items() if value is not None})
    try:
        return _build(_widened(description, width))
    except ValidationError as error:
        raise InvalidSpace(f"Search space '{description.name}': {validation_sentence(error.errors())}.") from error
    except InvalidSpace as error:
        raise InvalidSpace(f"Search space '{description.name}': {error}") from error


def space_recipe(name_or_path: str) -> dict[str, Any]:
    """The settings that a search in this space uses unless told otherwise: the file's `[recipe]`.

    Raises:
        InvalidSpace: no such space.
    """
    return _read(name_or_path).recipe


def _read(name_or_path: str, **overrides: int) -> _SpaceFile:
    builtin = name_or_path in builtin_spaces()
    file = _BUILTIN / f"{name_or_path}.toml" if builtin else Path(name_or_path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        return _SpaceFile.model_validate(values | overrides)
    except OSError as error:
        raise InvalidSpace(
            f"There is no search space '{name_or_path}'. Use {', '.join(builtin_spaces())}, or the path of a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpace(f"Search space '{name_or_path}' is not TOML: {error}.") from error
    except ValidationError as error:
        raise InvalidSpace(f"Search space '{name_or_path}': {validation_sentence(error.errors())}.") from error


def _widened(description: _SpaceFile, width: float) -> _SpaceFile:
    if width == 1:
        return description
    if not 0 < width <= MAX_WIDTH:
        raise InvalidSpace(f"width is {width:g}; use one above 0 and up to {MAX_WIDTH:g}")

    def scaled(part: _Stem | _Block | _Head, factor: float = width) -> dict[str, Any]:
        return part.model_dump() | {"channels": rounded_channels(part.channels * factor)}

    blocks = tuple(scaled(block) for block in description.blocks)
    parts = {"stem": scaled(description.stem), "blocks": blocks, "head": scaled(description.head, max(width, 1))}
    return _SpaceFile.model_validate(description.model_dump() | parts)


def _build(description: _SpaceFile) -> SearchSpace:
    side = description.input_size
    stem = Conv(
        height=side,
        width=side,
        in_channels=3,
        out_channels=description.stem.channels,
        kernel=description.stem.kernel,
        stride=description.stem.stride,
        activation=description.activation,
    )
    side, _, channels = stem.output_shape
    layers = []
    for block_index, block in enumerate(description.blocks, start=1):
        offered = description.choices if block.choices is None else block.choices
        offered_first = offered if block.first_choices is None else block.first_choices
        for layer_index in range(1, block.repeat + 1):
            first = layer_index == 1
            layer = SpaceLayer(
                name=f"block{block_index}.{layer_index}",
                height=side,
                width=side,
                in_channels=channels,
                out_channels=block.channels,
                stride=block.stride if first else 1,
                choices=tuple(choice for choice in offered_first if choice != IDENTITY) if first else offered,
            )
            if not layer.choices:
                raise InvalidSpace(f"{layer.name} has no choice besides {IDENTITY}; list at least one IBConv.")
            if len(set(layer.choices)) < len(layer.choices):
                raise InvalidSpace(f"{layer.name} lists a choice twice; list each once.")
            if layer.stride > side:
                raise InvalidSpace(
                    f"{layer.name} halves an input of one pixel; use a larger input_size than"
                    f" {description.input_size}, or fewer strides of 2."
                )
            layers.append(layer)
            side, channels = reduced(side, layer.stride), block.channels
    head = Head(
        height=side,
        width=side,
        in_channels=channels,
        hidden_channels=description.head.channels,
        out_channels=description.classes,
        activation=description.activation,
    )
    space = SearchSpace(description.name, stem, tuple(layers), head, description.activation)
    space.operators()  # a choice that cannot be built is an error here, not in the middle of a search
    return space
