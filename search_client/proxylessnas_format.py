"""Latency tables as ProxylessNAS and once-for-all read them: a YAML mapping from a text key to {mean, …} in ms.

Written from what their code reads: `LatencyEstimator.predict` in `search/utils/latency_estimator.py` of
github.com/mit-han-lab/proxylessnas, and `ProxylessNASLatencyTable` and `MBv3LatencyTable` in
`ofa/nas/efficiency_predictor/latency_lookup_table.py` of github.com/mit-han-lab/once-for-all. Shapes are HxWxC:

    Conv-input:224x224x3-output:112x112x32         the first convolution, 3x3 with stride 2
    expanded_conv-input:7x7x192-output:7x7x320-expand:6-kernel:5-stride:1-idskip:0
                                                   an inverted bottleneck; idskip: 1 where it has a residual connection
    Conv_1-input:7x7x320-output:7x7x1280           the last 1x1 convolution
    Logits-input:7x7x1280-output:1000              everything after it: pooling and classifier

A key has no activation: in ProxylessNAS all are ReLU6. In once-for-all's tables of MobileNetV3, `expand` is the number
of hidden channels, `-se:%d-hs:%d` says whether there are squeeze-and-excitation and h-swish (else it is ReLU), first
and last convolution have h-swish, and the parts of its head have no counterpart here.
"""

import math
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from latency_contract.errors import validation_sentence
from latency_contract.operators import Activation, Conv, Head, IBConv
from search_client.imported_tables import SourceNumber


class Flavour(StrEnum):
    PROXYLESSNAS = "proxylessnas"
    MBV3 = "mbv3"  # once-for-all's, for MobileNetV3


class Row(NamedTuple):
    """One line of a table to be written."""

    operator: Conv | IBConv | Head
    mean_ms: float
    readings: int | None = None  # None: not known, and left out
    variance_ms2: float | None = None


class Written(NamedTuple):
    numbers: dict[str, SourceNumber]  # by key
    left_out: dict[str, str]  # key of an operator and why it is not there


_SHAPE = r"(\d+)x(\d+)x(\d+)"
_CONVOLUTION = re.compile(rf"(?P<layer>Conv|Conv_1)-input:{_SHAPE}-output:{_SHAPE}")
_LOGITS = re.compile(rf"Logits-input:{_SHAPE}-output:(\d+)")
_BOTTLENECK = re.compile(
    rf"expanded_conv-input:{_SHAPE}-output:{_SHAPE}-expand:(\d+)-kernel:(\d+)-stride:(\d+)-idskip:([01])"
    r"(?:-se:([01])-hs:([01]))?"
)
_OTHERS = re.compile(rf"\w+-input:{_SHAPE}-output:\S+")  # of the same form, such as AvgPool2D and Conv_2
_OF_MBV3 = re.compile(r"-se:[01]-hs:[01]$")


def is_key(text: str) -> bool:
    return _OTHERS.fullmatch(text) is not None


def begins_with_a_key(line: str) -> bool:
    """Of a YAML file."""
    return _OTHERS.match(line.lstrip("'\"? ")) is not None


def flavour_of(keys: Iterable[str]) -> Flavour:
    """Raises ValueError where there are keys of both."""
    marked = {_OF_MBV3.search(key) is not None for key in keys if key.startswith("expanded_conv-")}
    if len(marked) > 1:
        raise ValueError("some of its keys end with -se:…-hs:… and some do not, so expand may mean two things")
    return Flavour.MBV3 if marked == {True} else Flavour.PROXYLESSNAS


def yaml_numbers(text: str) -> list[SourceNumber]:
    """Every number of a YAML table, as it stands. Raises ValueError."""
    try:
        document = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(document, dict):
        if len(root.value) > len(document):  # a parser keeps the last of two equal keys, and says nothing
            raise ValueError("it has a key twice")
        return [_number(str(key), value) for key, value in document.items()]
    raise ValueError("it holds no mapping from keys to latencies")


def _number(key: str, value: Any) -> SourceNumber:
    if not isinstance(value, Mapping) or "mean" not in value:
        raise ValueError(f"'{key}' has no mean")
    return source_number(key, mean_ms=value["mean"], count=value.get("count"), variance_ms2=value.get("var"))


def source_number(key: str, *, mean_ms: Any, count: Any, variance_ms2: Any) -> SourceNumber:
    """Raises ValueError for what is no latency."""
    fields = {"key": key, "latency_ms": mean_ms, "count": count, "variance_ms2": variance_ms2}
    try:
        return SourceNumber.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"'{key}': {validation_sentence(error.errors())}") from error


def operators_of(
    numbers: Iterable[SourceNumber],
) -> tuple[dict[Conv | IBConv | Head, tuple[SourceNumber, ...]], list[str]]:
    """What each operator takes, and the keys that no operator here stands for.

    A head is `Conv_1` and the `Logits` that follow it; `Conv_1` alone is a convolution too.

    Raises:
        ValueError: a key that is not of this form, or names something impossible, or two keys name one operator.
    """
    numbers = list(numbers)
    flavour = flavour_of(number.key for number in numbers)
    found: dict[Conv | IBConv | Head, tuple[SourceNumber, ...]] = {}
    left_out = []
    last_convolutions = []
    for number in numbers:
        operator = _operator(number.key, flavour)
        if operator is not None:
            _add(found, operator, (number,))
            if number.key.startswith("Conv_1-"):
                assert isinstance(operator, Conv)
                last_convolutions.append((operator, number))
    for number in numbers:
        match = _LOGITS.fullmatch(number.key)
        heads = 0
        if match and flavour is Flavour.PROXYLESSNAS:
            height, width, channels, classes = (int(part) for part in match.groups())
            for convolution, its_number in last_convolutions:
                if convolution.output_shape == (height, width, channels):
                    head = Head(
                        height=height, width=width, in_channels=convolution.in_channels,
                        hidden_channels=channels, out_channels=classes,
                    )  # fmt: skip
                    _add(found, head, (its_number, number))
                    heads += 1
        if _operator(number.key, flavour) is None and not heads:
            left_out.append(number.key)
    return found, left_out


def _add(
    found: dict[Conv | IBConv | Head, tuple[SourceNumber, ...]],
    operator: Conv | IBConv | Head,
    numbers: tuple[SourceNumber, ...],
) -> None:
    if operator in found:
        raise ValueError(f"'{found[operator][0].key}' and '{numbers[0].key}' name the same operator, {operator.key}")
    found[operator] = numbers


def _operator(key: str, flavour: Flavour) -> Conv | IBConv | None:
    """The operator of a key; None for `Logits` and for what has no counterpart here."""
    ends = Activation.HSWISH if flavour is Flavour.MBV3 else Activation.RELU6
    try:
        if match := _CONVOLUTION.fullmatch(key):
            height, width, c_in, out_height, out_width, c_out = (int(part) for part in match.groups()[1:])
            first = match["layer"] == "Conv"
            convolution = Conv.model_validate(
                {
                    "height": height,
                    "width": width,
                    "in_channels": c_in,
                    "out_channels": c_out,
                    "kernel": 3 if first else 1,
                    "stride": 2 if first else 1,
                    "activation": ends,
                }
            )
            _must_give((out_height, out_width, c_out), convolution, key)
            return convolution
        if match := _BOTTLENECK.fullmatch(key):
            numbers = [int(part) for part in match.groups()[:10]]
            height, width, c_in, out_height, out_width, c_out, expand, kernel, stride, idskip = numbers
            squeeze_excite, hswish = match.groups()[10:]
            if flavour is Flavour.MBV3:
                if expand % c_in:
                    return None  # no whole number of times the input channels
                expand //= c_in
            other = Activation.RELU if flavour is Flavour.MBV3 else Activation.RELU6
            bottleneck = IBConv.model_validate(
                {
                    "height": height,
                    "width": width,
                    "in_channels": c_in,
                    "out_channels": c_out,
                    "kernel": kernel,
                    "stride": stride,
                    "expansion": expand,
                    "residual": idskip == 1,
                    "activation": Activation.HSWISH if hswish == "1" else other,
                    "squeeze_excite": squeeze_excite == "1",
                }
            )
            _must_give((out_height, out_width, c_out), bottleneck, key)
            return bottleneck
    except ValidationError as error:
        raise ValueError(f"'{key}': {validation_sentence(error.errors())}") from error
    if not is_key(key):
        raise ValueError(f"'{key}' is no key of this format")
    return None


def _must_give(shape: tuple[int, int, int], operator: Conv | IBConv, key: str) -> None:
    if operator.output_shape != shape:
        raise ValueError(f"'{key}' says an output of {_shape(shape)}, but it is {_shape(operator.output_shape)}")


def to_numbers(rows: Iterable[Row], flavour: Flavour) -> Written:
    """Rows under the keys of this format.

    A head is measured as one. Where the table also holds its 1x1 convolution alone, that is `Conv_1`, and what the
    head takes more is `Logits`; its variance is the sum of both, as they were measured apart. Otherwise, and always in
    the flavour of MobileNetV3, whose head has other parts, the head is left out.

    Raises:
        ValueError: an operator that the format cannot express, or two that it would give the same key.
    """
    rows = list(rows)
    by_operator = {row.operator: row for row in rows}
    numbers: dict[str, SourceNumber] = {}
    owners: dict[str, Conv | IBConv | Head] = {}
    left_out: dict[str, str] = {}

    def add(number: SourceNumber, operator: Conv | IBConv | Head) -> None:
        if number.key in numbers and numbers[number.key] != number:
            raise ValueError(
                f"{owners[number.key].key} and {operator.key} would both be '{number.key}', which cannot tell them"
                " apart. Export the operators of one space with --space."
            )
        numbers[number.key], owners[number.key] = number, operator

    inexpressible = [row.operator.key for row in rows if not _expressible(row.operator, flavour)]
    if inexpressible:
        named = ", ".join(inexpressible[:3]) + (f" and {len(inexpressible) - 3} more" if inexpressible[3:] else "")
        other = "yaml-mbv3" if flavour is Flavour.PROXYLESSNAS else "yaml"
        raise ValueError(
            f"This format has no words for {named}: {_WORDS[flavour]}."
            f" Export the operators of one space with --space, or use --format {other} or csv."
        )
    for row in rows:
        if not isinstance(row.operator, Head):
            key = _key(row.operator, flavour)
            add(
                source_number(key, mean_ms=row.mean_ms, count=row.readings, variance_ms2=row.variance_ms2), row.operator
            )
    for row in rows:
        if not isinstance(row.operator, Head):
            continue
        convolution = by_operator.get(last_convolution(row.operator))
        if flavour is Flavour.MBV3:
            left_out[row.operator.key] = "the head of once-for-all's MobileNetV3 has other parts"
        elif convolution is None:
            left_out[row.operator.key] = (
                f"it is measured as one; for Conv_1 and Logits, {last_convolution(row.operator).key} is needed too"
            )
        elif row.mean_ms <= convolution.mean_ms:
            left_out[row.operator.key] = f"it is not slower than {convolution.operator.key}, a part of it"
        else:
            add(_logits(row, convolution), row.operator)
    return Written(numbers, left_out)


_WORDS = {
    Flavour.PROXYLESSNAS: (
        "its first convolution is 3x3 with stride 2, its last 1x1, every activation is ReLU6, and it has no"
        " squeeze-and-excitation"
    ),
    Flavour.MBV3: (
        "its first convolution is 3x3 with stride 2 and its last 1x1, both with h-swish, and its bottlenecks have ReLU"
        " or h-swish"
    ),
}


def last_convolution(head: Head) -> Conv:
    """The 1x1 convolution that a head begins with."""
    return Conv(
        height=head.height, width=head.width, in_channels=head.in_channels, out_channels=head.hidden_channels,
        kernel=1, stride=1, activation=head.activation,
    )  # fmt: skip


def _logits(head: Row, convolution: Row) -> SourceNumber:
    operator = head.operator
    assert isinstance(operator, Head)
    shape = (operator.height, operator.width, operator.hidden_channels)
    variances = (head.variance_ms2, convolution.variance_ms2)
    return source_number(
        f"Logits-input:{_shape(shape)}-output:{operator.out_channels}",
        mean_ms=head.mean_ms - convolution.mean_ms,
        count=head.readings,
        variance_ms2=None if None in variances else math.fsum(v for v in variances if v is not None),
    )


def _expressible(operator: Conv | IBConv | Head, flavour: Flavour) -> bool:
    ends = Activation.HSWISH if flavour is Flavour.MBV3 else Activation.RELU6
    match operator:
        case Conv(kernel=kernel, stride=stride, activation=activation):
            return (kernel, stride) in ((3, 2), (1, 1)) and activation == ends
        case Head(activation=activation):
            return activation == ends
        case IBConv(activation=activation, squeeze_excite=squeeze_excite):
            if flavour is Flavour.MBV3:
                return activation in (Activation.RELU, Activation.HSWISH)
            return activation == Activation.RELU6 and not squeeze_excite


def _key(operator: Conv | IBConv, flavour: Flavour) -> str:
    given = (operator.height, operator.width, operator.in_channels)
    shapes = f"input:{_shape(given)}-output:{_shape(operator.output_shape)}"
    if isinstance(operator, Conv):
        return f"{'Conv' if operator.stride == 2 else 'Conv_1'}-{shapes}"
    expand = operator.hidden_channels if flavour is Flavour.MBV3 else operator.expansion
    key = (
        f"expanded_conv-{shapes}-expand:{expand}-kernel:{operator.kernel}-stride:{operator.stride}"
        f"-idskip:{operator.residual:d}"
    )
    if flavour is Flavour.MBV3:
        key += f"-se:{operator.squeeze_excite:d}-hs:{operator.activation == Activation.HSWISH:d}"
    return key


def _shape(shape: tuple[int, int, int]) -> str:
    """HxWxC."""
    return "x".join(str(side) for side in shape)


def to_yaml(numbers: Mapping[str, SourceNumber], *, comments: Iterable[str]) -> str:
    """The file that their code reads. What is not known is left out; only `mean` is read."""
    document = {}
    for key, number in numbers.items():
        known = {"count": number.count, "mean": number.latency_ms, "var": number.variance_ms2}
        document[key] = {name: value for name, value in known.items() if value is not None}
    heading = "".join(f"# {line}\n" for line in comments)
    return heading + str(yaml.safe_dump(document, sort_keys=True, width=math.inf))
