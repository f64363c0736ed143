"""Calibration: what whole networks of a space take, against the sums of their operators in a table.

A handful of numbers that anyone can check: the networks that were measured are part of it, and a calibration is valid
only if its coefficients follow from them. Which form it has is decided by a rule that was written down before there
was anything to fit (docs/decisions/0022).
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from statistics import NormalDist, median
from typing import Annotated, NamedTuple, Self

from pydantic import AwareDatetime, Field, model_validator

from latency_contract.canonical import Contract, Sha256
from latency_contract.measurements import Milliseconds
from latency_contract.operators import Network, parse_key

MIN_NETWORKS = 10  # fewer say little about three coefficients and a spread
MAX_NETWORKS = 200
CLEARLY = 0.8  # a richer form has to leave at most so much of the plain one's error on networks it has not seen
OF_INTERVALS = NormalDist().inv_cdf(0.975)  # standard deviations to either end of networks' 95 % intervals
SAME = 1e-6  # relative difference that two machines' arithmetic may make

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Form(StrEnum):
    """How a network's latency is taken to follow from its operators."""

    SUM = "sum"  # a + b·Σ
    OPERATORS = "operators"  # and c for each operator: what starting one costs, or saves
    TRAFFIC = "traffic"  # and c for each million activations that operators hand on to the next


BEYOND_THE_SUM = {Form.SUM: (), Form.OPERATORS: ("operators",), Form.TRAFFIC: ("activations_m",)}


class Terms(NamedTuple):
    """What of a network a calibration looks at."""

    sum_ms: float  # of its operators' latencies in the table
    operators: float
    activations_m: float  # millions of them, the outputs of all operators together

    def of(self, form: Form) -> tuple[float, ...]:
        """What the form's coefficients are multiplied with."""
        return (1.0, self.sum_ms, *(getattr(self, name) for name in BEYOND_THE_SUM[form]))


class Fit(NamedTuple):
    """Least squares of latency/Σ: errors grow with latency, so all networks count alike relative to their sum."""

    form: Form
    coefficients: tuple[float, ...]
    inverse: tuple[tuple[float, ...], ...]  # of the normal matrix
    spread: float  # standard deviation of the residuals, relative to the sum
    degrees: int  # of freedom that are left
    left_out_ms: tuple[float, ...]  # each network as the fit on all others predicts it

    def latency_ms(self, terms: Terms) -> float:
        return math.fsum(c * value for c, value in zip(self.coefficients, terms.of(self.form), strict=True))

    def variance_ms2(self, terms: Terms) -> float:
        """Of another network about its prediction: the residuals' own, and that of the coefficients."""
        values = terms.of(self.form)
        return self.spread**2 * (terms.sum_ms**2 + _quadratic(self.inverse, values))


class CalibratedNetwork(Contract):
    """A network that was measured whole."""

    subject_id: Sha256
    key: str
    operators: Annotated[tuple[str, ...], Field(min_length=1)]  # their keys, in order
    measurement_id: int
    sum_ms: Milliseconds
    sum_deviation_ms: NotNegative  # standard deviation of the sum, as the operators' intervals have it
    activations_m: NotNegative
    latency_ms: Milliseconds  # as measured
    low_ms: Milliseconds
    high_ms: Milliseconds
    predicted_ms: Finite  # by a calibration on all the others, whose form was chosen without this one

    @property
    def terms(self) -> Terms:
        return Terms(self.sum_ms, len(self.operators), self.activations_m)

    @property
    def half_width(self) -> float:
        """Of its interval, relative to its latency."""
        return self.high_ms / self.latency_ms - 1

    @property
    def network(self) -> Network:
        return Network(operators=tuple(parse_key(key) for key in self.operators))

    @property
    def error_pct(self) -> float:
        """Of the prediction, in percent of what was measured."""
        return 100 * (self.predicted_ms / self.latency_ms - 1)


class CalibrationRequest(Contract):
    """Calibrate a table version with networks that are measured already."""

    space: Annotated[str, Field(min_length=1, max_length=100)]  # that they were drawn from, for people
    operator_ids: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=10_000)]  # what it will hold for
    network_ids: Annotated[tuple[Sha256, ...], Field(min_length=MIN_NETWORKS, max_length=MAX_NETWORKS)]


class Calibration(Contract):
    """Never changed once it is made. It holds wherever a table has these very measurements of the operators."""

    table_id: Sha256
    table_version: Annotated[int, Field(ge=1)]  # that it was made with
    space: str
    measurements: dict[Sha256, int]  # of the operators that it holds for, by subject
    calibrated_at: AwareDatetime
    form: Form
    coefficients: tuple[Finite, ...]  # in ms: constant; of the sum; of what the form has beyond it
    residual_pct: NotNegative  # standard deviation, in percent of the sum
    degrees: Annotated[int, Field(ge=1)]  # of freedom behind it
    left_out_mape_pct: NotNegative  # mean error of `predicted_ms`, which is leave-one-out
    left_out_worst_pct: NotNegative
    networks: Annotated[tuple[CalibratedNetwork, ...], Field(min_length=MIN_NETWORKS, max_length=MAX_NETWORKS)]

    @cached_property
    def fit(self) -> Fit:
        return least_squares(self.form, [n.terms for n in self.networks], [n.latency_ms for n in self.networks])

    @cached_property
    def sum_variance(self) -> float:
        """What operators' intervals left open of the sums, on average over the networks, relative to the sums."""
        return math.fsum((n.sum_deviation_ms / n.sum_ms) ** 2 for n in self.networks) / len(self.networks)

    @cached_property
    def common_variance(self) -> float:
        """What may move all of its networks alike in another lease, on average over them, relative to the sums.

        They were measured in one lease, in the same weather, so that the residuals do not show it. The interval of each
        holds a repetition (docs/decisions/0020) and says how far one moves; no more than that, all do (0034).
        """
        moves = [(n.high_ms - n.latency_ms) / OF_INTERVALS / n.sum_ms for n in self.networks]
        return math.fsum(move**2 for move in moves) / len(moves)

    def latency_ms(self, terms: Terms) -> float:
        return self.fit.latency_ms(terms)

    def deviation_ms(self, terms: Terms, *, sum_deviation_ms: float) -> float:
        """Standard deviation of a network's latency about its prediction, for Student's t with `degrees`.

        The residuals hold the errors of operators as well, as far as the networks had them. A network whose operators
        are known less well adds what is beyond that.
        """
        beyond_ms2 = max(0.0, sum_deviation_ms**2 - self.sum_variance * terms.sum_ms**2)
        common_ms2 = self.common_variance * terms.sum_ms**2
        return math.sqrt(self.fit.variance_ms2(terms) + common_ms2 + self.coefficients[1] ** 2 * beyond_ms2)

    @property
    def known_within_pct(self) -> float:
        """How well its networks are known themselves: half-width of their intervals, median."""
        return 100 * median(n.half_width for n in self.networks)

    @property
    def formula(self) -> str:
        """The model, as people write it."""
        constant, slope, *beyond = self.coefficients
        names = {Form.OPERATORS: "operator", Form.TRAFFIC: "million activations"}
        text = f"{constant:.4g} ms + {slope:.5g}·sum"
        return text + "".join(f" {c:+.4g} ms per {names[self.form]}" for c in beyond)

    @property
    def sentence(self) -> str:
        return (
            f"calibrated on {self.calibrated_at:%Y-%m-%d} with {len(self.networks)} networks of '{self.space}':"
            f" {self.formula}; residual spread {self.residual_pct:.2f} %; left out one by one they are"
            f" {self.left_out_mape_pct:.2f} % off on average, {self.left_out_worst_pct:.2f} % at worst; measured again,"
            f" they would lie within {self.known_within_pct:.2f} %"
        )

    @model_validator(mode="after")
    def _follows_from_its_networks(self) -> Self:
        stated = (*self.coefficients, self.residual_pct)
        follows = (*self.fit.coefficients, 100 * self.fit.spread)
        size = max(map(abs, follows))
        same = len(stated) == len(follows) and self.degrees == self.fit.degrees
        if not same or not all(
            math.isclose(a, b, rel_tol=SAME, abs_tol=SAME * size) for a, b in zip(stated, follows, strict=True)
        ):
            raise ValueError(f"coefficients and spread {stated} do not follow from the networks, {follows}")
        return self


def newest(history: Sequence[Calibration]) -> list[Calibration]:
    """Of calibrations that come with the newest first, the first for each set of operators."""
    first = dict[frozenset[str], Calibration]()
    for one in history:
        first.setdefault(frozenset(one.measurements), one)
    return list(first.values())


def choose_form(terms: Sequence[Terms], latencies_ms: Sequence[float]) -> Form:
    """The plain sum, unless a richer form wins clearly on networks that it has not seen.

    Measure: root mean square of the relative errors when each network is left out in turn. The best of the richer
    forms is taken where its error is at most CLEARLY times that of the plain sum.
    """
    errors = {form: _left_out_error(form, terms, latencies_ms) for form in Form}
    best = min((form for form in Form if form is not Form.SUM), key=lambda form: errors[form])
    return best if errors[best] <= CLEARLY * errors[Form.SUM] else Form.SUM


def left_out(terms: Sequence[Terms], latencies_ms: Sequence[float]) -> list[float]:
    """Each network as predicted from the others alone; they choose the form, too."""
    predicted = []
    for index, one in enumerate(terms):
        others, theirs = [*terms[:index], *terms[index + 1 :]], [*latencies_ms[:index], *latencies_ms[index + 1 :]]
        predicted.append(least_squares(choose_form(others, theirs), others, theirs).latency_ms(one))
    return predicted


def least_squares(form: Form, terms: Sequence[Terms], latencies_ms: Sequence[float]) -> Fit:
    """Raises ValueError where the networks are too few or too alike to tell the form's coefficients apart."""
    rows = [tuple(value / one.sum_ms for value in one.of(form)) for one in terms]
    ratios = [ms / one.sum_ms for ms, one in zip(latencies_ms, terms, strict=True)]
    size = len(rows[0])
    degrees = len(rows) - size
    if degrees < 1:
        raise ValueError(f"{len(rows)} networks are too few for {size} coefficients; measure more")
    normal = [[math.fsum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    inverse = _inverse(normal)
    moments = [math.fsum(row[i] * ratio for row, ratio in zip(rows, ratios, strict=True)) for i in range(size)]
    coefficients = tuple(math.fsum(a * b for a, b in zip(line, moments, strict=True)) for line in inverse)
    leverages = [_quadratic(inverse, row) for row in rows]
    if max(leverages) > 1 - 1e-9:  # it would be predicted from nothing when it is left out
        raise ValueError("one network is like no other, and a coefficient would follow from it alone; measure more")
    residuals = [
        ratio - math.fsum(c * value for c, value in zip(coefficients, row, strict=True))
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    left_out_ms = tuple(
        ms - one.sum_ms * residual / (1 - leverage)  # as if fitted without it (Allen's PRESS)
        for ms, one, residual, leverage in zip(latencies_ms, terms, residuals, leverages, strict=True)
    )
    spread = math.sqrt(math.fsum(residual**2 for residual in residuals) / degrees)
    return Fit(form, coefficients, inverse, spread, degrees, left_out_ms)


def _left_out_error(form: Form, terms: Sequence[Terms], latencies_ms: Sequence[float]) -> float:
    """Infinite where the form cannot be fitted."""
    try:
        predicted = least_squares(form, terms, latencies_ms).left_out_ms
    except ValueError:
        return math.inf
    return math.sqrt(math.fsum((p / ms - 1) ** 2 for p, ms in zip(predicted, latencies_ms, strict=True)) / len(terms))


def _quadratic(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> float:
    """vᵀ M v."""
    return math.fsum(
        a * m * b for a, line in zip(vector, matrix, strict=True) for m, b in zip(line, vector, strict=True)
    )


def _inverse(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Gauss and Jordan's, with the matrix scaled to a diagonal of ones. Raises ValueError where it is singular."""
    size = len(matrix)
    if any(matrix[i][i] <= 0 for i in range(size)):
        raise ValueError("the networks are too alike to calibrate with; measure others")
    scales = [1 / math.sqrt(matrix[i][i]) for i in range(size)]
    rows = [
        [matrix[i][j] * scales[i] * scales[j] for j in range(size)] + [float(i == j) for j in range(size)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(rows[row][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < 1e-10:
            raise ValueError("the networks are too alike to calibrate with; measure others")
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return tuple(tuple(scales[i] * rows[i][size + j] * scales[j] for j in range(size)) for i in range(size))
