"""Operators and networks: the subjects that are counted, trained, converted and measured.

Every number and every model of a subject is derived from `layers`, its weighted layers in order. The PyTorch
module and the TFLite model are built from the same list, so they cannot drift apart.

Padding is TensorFlow's "SAME" everywhere: an output is ceil(input / stride) wide. See docs/decisions/0003.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from latency_contract.canonical import Contract, content_hash
from latency_contract.errors import validation_sentence
from latency_contract.model_files import TFLiteModel

# Bounds of what a phone can run in reasonable time. They keep a slip of the keyboard from filling a device's memory.
MAX_SIDE = 2048  # pixels
MAX_CHANNELS = 8192
MAX_HIDDEN_CHANNELS = 16384  # after expansion
MAX_ACTIVATION_ELEMENTS = 64_000_000  # 256 MB of float32 in one tensor
MAX_MACS = 20_000_000_000  # some seconds on one core of a phone
MAX_PARAMETERS = 100_000_000  # 400 MB of float32 weights
MAX_OPERATORS = 256  # in one network

SQUEEZE_DIVISOR = 4  # squeeze-and-excitation squeezes the expanded channels by four, as MobileNetV3 does
CHANNEL_MULTIPLE = 8


class Activation(StrEnum):
    RELU = "relu"  # max(x, 0)
    RELU6 = "relu6"  # min(max(x, 0), 6), MobileNetV2
    HSWISH = "hswish"  # x * relu6(x + 3) / 6, MobileNetV3
    NONE = "none"  # linear


class Layer(NamedTuple):
    """One layer with weights. A layer with batch normalisation has no bias of its own."""

    name: str  # unique inside its operator
    height: int  # of the input
    width: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int  # 1, or in_channels for a depthwise convolution
    activation: Activation
    batch_norm: bool

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(out_channels, in_channels / groups, kernel, kernel)."""
        return (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)

    @property
    def weights(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        return self.weights * reduced(self.height, self.stride) * reduced(self.width, self.stride)

    @property
    def parameters(self) -> int:
        """Weights, and scale and shift of the batch normalisation, or the bias."""
        return self.weights + (2 if self.batch_norm else 1) * self.out_channels


def reduced(side: int, stride: int) -> int:
    """Pixels of an output side under "SAME" padding."""
    return -(-side // stride)


def rounded_channels(target: float) -> int:
    """The nearest multiple of eight that is no more than a tenth below the target, as in MobileNetV2 and V3."""
    rounded = max(CHANNEL_MULTIPLE, int(target + CHANNEL_MULTIPLE / 2) // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE)
    return rounded + CHANNEL_MULTIPLE if rounded < 0.9 * target else rounded


def squeezed_channels(hidden: int) -> int:
    """Channels between the two layers of squeeze-and-excitation."""
    return rounded_channels(hidden / SQUEEZE_DIVISOR)


Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Kernel = Literal[1, 3, 5, 7, 9, 11]
Stride = Literal[1, 2]


class _Subject(Contract):
    """What operators and networks share: identity, counts, and the bounds on them."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The weighted layers in order."""

    @property
    @abstractmethod
    def key(self) -> str:
        """The canonical text that names it."""

    @cached_property
    def id(self) -> str:
        """Hash of the canonical JSON: the name under which this subject is converted, queued, measured and cached."""
        return content_hash(self)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        return sum(layer.macs for layer in self.layers)

    @cached_property
    def parameters(self) -> int:
        """Trainable parameters, batch normalisation's scale and shift included."""
        return sum(layer.parameters for layer in self.layers)

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        for layer in self.layers:
            widest = max(layer.in_channels, layer.out_channels)
            if widest > MAX_HIDDEN_CHANNELS:
                raise ValueError(
                    f"{self.key}: layer '{layer.name}' has {widest:,} channels, more than the {MAX_HIDDEN_CHANNELS:,}"
                    " that are accepted; use fewer channels or a smaller expansion"
                )
            elements = layer.height * layer.width * widest
            if elements > MAX_ACTIVATION_ELEMENTS:
                raise ValueError(
                    f"{self.key}: layer '{layer.name}' works on {elements:,} activations, more than the"
                    f" {MAX_ACTIVATION_ELEMENTS:,} that are accepted; use a smaller input or fewer channels"
                )
        for what, value, bound in (
            ("multiply-accumulates", self.macs, MAX_MACS),
            ("parameters", self.parameters, MAX_PARAMETERS),
        ):
            if value > bound:
                raise ValueError(f"{self.key}: {value:,} {what}, more than the {bound:,} that are accepted")
        return self


class IBConv(_Subject):
    """Inverted bottleneck of MobileNetV2 (Table 2 of the paper: `IBConv_KX_EY`).

    1x1 expansion, depthwise convolution, 1x1 linear projection. With expansion 1 there is no first 1x1 convolution.
    With `squeeze_excite`, the depthwise output is gated per channel by a hard sigmoid, as in MobileNetV3.
    """

    kind: Literal["ibconv"] = "ibconv"
    height: Side
    width: Side
    in_channels: Channels
    out_channels: Channels
    kernel: Kernel
    stride: Stride
    expansion: Annotated[int, Field(ge=1, le=16)]
    residual: bool
    activation: Activation = Activation.RELU6
    squeeze_excite: bool = False

    @model_validator(mode="after")
    def _residual_fits(self) -> Self:
        if self.residual and (self.stride != 1 or self.in_channels != self.out_channels):
            raise ValueError("a residual connection needs stride 1 and as many output as input channels")
        return self

    @property
    def hidden_channels(self) -> int:
        return self.in_channels * self.expansion

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return (reduced(self.height, self.stride), reduced(self.width, self.stride), self.out_channels)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        hidden, act, none = self.hidden_channels, self.activation, Activation.NONE
        h, w = self.height, self.width
        out_h, out_w, _ = self.output_shape
        layers = []
        if self.expansion != 1:
            layers.append(Layer("expand", h, w, self.in_channels, hidden, 1, 1, 1, act, True))
        layers.append(Layer("depthwise", h, w, hidden, hidden, self.kernel, self.stride, hidden, act, True))
        if self.squeeze_excite:
            squeezed = squeezed_channels(hidden)
            layers.append(Layer("squeeze", 1, 1, hidden, squeezed, 1, 1, 1, Activation.RELU, False))
            layers.append(Layer("excite", 1, 1, squeezed, hidden, 1, 1, 1, none, False))
        layers.append(Layer("project", out_h, out_w, hidden, self.out_channels, 1, 1, 1, none, True))
        return tuple(layers)

    @property
    def key(self) -> str:
        marks = ("_residual" if self.residual else "") + ("_se" if self.squeeze_excite else "")
        return (
            f"IBConv_K{self.kernel}_E{self.expansion}_H{self.height}_W{self.width}"
            f"_I{self.in_channels}_O{self.out_channels}_S{self.stride}_{self.activation}{marks}"
        )


class Conv(_Subject):
    """Convolution, batch normalisation, activation: the stem of a network (Table 1 of the paper, first row)."""

    kind: Literal["conv"] = "conv"
    height: Side
    width: Side
    in_channels: Channels
    out_channels: Channels
    kernel: Kernel
    stride: Stride
    activation: Activation = Activation.RELU6

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return (reduced(self.height, self.stride), reduced(self.width, self.stride), self.out_channels)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        c_in, c_out = self.in_channels, self.out_channels
        return (
            Layer("conv", self.height, self.width, c_in, c_out, self.kernel, self.stride, 1, self.activation, True),
        )

    @property
    def key(self) -> str:
        return (
            f"Conv_K{self.kernel}_H{self.height}_W{self.width}"
            f"_I{self.in_channels}_O{self.out_channels}_S{self.stride}_{self.activation}"
        )


class Head(_Subject):
    """1x1 convolution, global average pooling, linear classifier (Table 1 of the paper, last three rows)."""

    kind: Literal["head"] = "head"
    height: Side
    width: Side
    in_channels: Channels
    hidden_channels: Channels
    out_channels: Channels  # classes
    activation: Activation = Activation.RELU6

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(1, 1, classes)."""
        return (1, 1, self.out_channels)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        h, w, hidden = self.height, self.width, self.hidden_channels
        return (
            Layer("conv", h, w, self.in_channels, hidden, 1, 1, 1, self.activation, True),
            Layer("linear", 1, 1, hidden, self.out_channels, 1, 1, 1, Activation.NONE, False),
        )

    @property
    def key(self) -> str:
        return (
            f"Head_H{self.height}_W{self.width}_I{self.in_channels}_M{self.hidden_channels}"
            f"_O{self.out_channels}_{self.activation}"
        )


Operator = Annotated[IBConv | Conv | Head, Field(discriminator="kind")]


class Network(_Subject):
    """A sequence of operators, each fed with the output of the one before."""

    kind: Literal["network"] = "network"
    operators: Annotated[tuple[Operator, ...], Field(min_length=1, max_length=MAX_OPERATORS)]

    @model_validator(mode="after")
    def _shapes_chain(self) -> Self:
        for index, (before, after) in enumerate(pairwise(self.operators)):
            expected = (after.height, after.width, after.in_channels)
            if before.output_shape != expected:
                raise ValueError(
                    f"operator {index + 1} ({after.key}) expects input {expected},"
                    f" but operator {index} ({before.key}) gives {before.output_shape} (height, width, channels)"
                )
        return self

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for operator in self.operators for layer in operator.layers)

    @property
    def key(self) -> str:
        return f"Network_{len(self.operators)}_{self.id[:12]}"


Subject = Annotated[IBConv | Conv | Head | Network | TFLiteModel, Field(discriminator="kind")]
subject_adapter: TypeAdapter[Subject] = TypeAdapter(Subject)

_SHAPE = r"_H(?P<height>\d+)_W(?P<width>\d+)_I(?P<in_channels>\d+)"
_KEY_PATTERNS: dict[type[IBConv | Conv | Head], re.Pattern[str]] = {
    IBConv: re.compile(
        rf"IBConv_K(?P<kernel>\d+)_E(?P<expansion>\d+){_SHAPE}_O(?P<out_channels>\d+)_S(?P<stride>\d)"
        r"_(?P<activation>[a-z0-9]+)(?P<residual>_residual)?(?P<squeeze_excite>_se)?"
    ),
    Conv: re.compile(
        rf"Conv_K(?P<kernel>\d+){_SHAPE}_O(?P<out_channels>\d+)_S(?P<stride>\d)_(?P<activation>[a-z0-9]+)"
    ),
    Head: re.compile(rf"Head{_SHAPE}_M(?P<hidden_channels>\d+)_O(?P<out_channels>\d+)_(?P<activation>[a-z0-9]+)"),
}
KEY_EXAMPLE = "IBConv_K3_E6_H14_W14_I80_O80_S1_relu6_residual"


def parse_key(key: str) -> IBConv | Conv | Head:
    """The operator that a canonical text key names.

    Raises:
        ValueError: the text is no key, or names an operator out of bounds.
    """
    for operator_type, pattern in _KEY_PATTERNS.items():
        if match := pattern.fullmatch(key):
            fields = {name: _field_value(name, text) for name, text in match.groupdict().items()}
            try:
                return operator_type.model_validate(fields)
            except ValidationError as error:
                reasons = validation_sentence(error.errors())
                raise ValueError(f"'{key}' names an operator that is not accepted: {reasons}") from error
    raise ValueError(f"'{key}' is not an operator's key; a key reads like {KEY_EXAMPLE}")


def _field_value(name: str, text: str | None) -> int | str | bool:
    if name in ("residual", "squeeze_excite"):
        return text is not None
    if name == "activation":
        return str(text)
    return int(str(text))


def qualified_layers(subject: IBConv | Conv | Head | Network) -> Iterator[tuple[str, Layer]]:
    """Every weighted layer of a subject under the name its weights travel by: `INDEX.NAME`.

    A single operator has index 0, so that it and a network of just that operator name their weights alike.
    """
    operators = subject.operators if isinstance(subject, Network) else (subject,)
    for index, operator in enumerate(operators):
        for layer in operator.layers:
            yield f"{index}.{layer.name}", layer
