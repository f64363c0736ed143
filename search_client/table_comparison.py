"""Two tables side by side, operator by operator: two versions, two devices, two protocols, or somebody else's.

What is compared are the tables' latencies with the intervals that they state. Significance is as good as those: an
interval that sees less than a repetition would differ by makes differences look more certain than they are.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, kendalltau, norm, spearmanr

from latency_contract.tables import Table
from search_client.imported_tables import AnyTable, KnownLatency, OperatorTable, describe, known_latency, of_operators

CONFIDENCE = 0.95  # of the interval of a ratio
FALSE_DISCOVERIES = 0.05  # share of what is called significant that may be chance
LEAST_FOR_RANKS = 3  # operators


class Ratio(NamedTuple):
    """B over A."""

    value: float
    low: float | None  # None where a table does not say how well it knows the latency
    high: float | None
    p_value: float | None  # of there being no difference, alone


@dataclass(frozen=True)
class Compared:
    """One operator that both tables hold."""

    key: str
    first: KnownLatency
    second: KnownLatency
    ratio: Ratio
    adjusted_p: float | None  # among all operators that have one

    @property
    def significant(self) -> bool:
        return self.adjusted_p is not None and self.adjusted_p <= FALSE_DISCOVERIES


@dataclass(frozen=True)
class Comparison:
    first: OperatorTable
    second: OperatorTable
    operators: tuple[Compared, ...]  # what differs most first
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @cached_property
    def significant(self) -> tuple[Compared, ...]:
        return tuple(one for one in self.operators if one.significant)

    @property
    def tested(self) -> int:
        """Operators of which both tables say how well they are known."""
        return sum(one.adjusted_p is not None for one in self.operators)

    @property
    def median_ratio(self) -> float | None:
        return float(np.median([one.ratio.value for one in self.operators])) if self.operators else None

    @cached_property
    def rank_correlations(self) -> tuple[float, float] | None:
        """Spearman's and Kendall's; None where too few operators are in both, or one side is constant."""
        first = [one.first.latency_ms for one in self.operators]
        second = [one.second.latency_ms for one in self.operators]
        if len(first) < LEAST_FOR_RANKS or len(set(first)) == 1 or len(set(second)) == 1:
            return None
        return float(spearmanr(first, second).statistic), float(kendalltau(first, second).statistic)

    def to_json(self) -> dict[str, Any]:
        ranks = self.rank_correlations
        return {
            "first": describe(self.first),
            "second": describe(self.second),
            "differs_in": differences(self.first, self.second),
            "in_both": len(self.operators),
            "tested": self.tested,
            "significant": len(self.significant),
            "false_discoveries": FALSE_DISCOVERIES,
            "median_ratio": self.median_ratio,
            "spearman": None if ranks is None else ranks[0],
            "kendall_tau": None if ranks is None else ranks[1],
            "operators": [
                {
                    "key": one.key,
                    "first": one.first._asdict(),
                    "second": one.second._asdict(),
                    "ratio": one.ratio._asdict(),
                    "adjusted_p": one.adjusted_p,
                    "significant": one.significant,
                }
                for one in self.operators
            ],
            "only_in_first": list(self.only_first),
            "only_in_second": list(self.only_second),
        }


def compare(first: AnyTable, second: AnyTable) -> Comparison:
    """Operator by operator.

    p-values are corrected for their number by Benjamini and Hochberg's procedure ("Controlling the false discovery
    rate", 1995): of the operators that are called significant, about FALSE_DISCOVERIES are so by chance. It holds where
    tests are independent or depend positively on each other, as those of a device that was slower as a whole.

    Raises:
        ValueError: one is a linear model, which knows no operators.
    """
    one_table, other_table = of_operators(first), of_operators(second)
    by_key = {entry.key: known_latency(entry) for entry in one_table.entries}
    other_by_key = {entry.key: known_latency(entry) for entry in other_table.entries}
    keys = [key for key in by_key if key in other_by_key]
    ratios = [ratio(by_key[key], other_by_key[key]) for key in keys]
    adjusted = _adjusted([one.p_value for one in ratios])
    operators = [
        Compared(key, by_key[key], other_by_key[key], one, p)
        for key, one, p in zip(keys, ratios, adjusted, strict=True)
    ]
    operators.sort(key=lambda one: (-abs(math.log(one.ratio.value)), one.key))
    return Comparison(
        one_table,
        other_table,
        tuple(operators),
        tuple(key for key in by_key if key not in other_by_key),
        tuple(key for key in other_by_key if key not in by_key),
    )


def ratio(first: KnownLatency, second: KnownLatency) -> Ratio:
    """Second over first, with an interval from their two intervals.

    On logarithms, where a ratio is a difference. The distance from an estimate to either end of its interval, divided
    by the normal quantile of its confidence, is its standard error on that side; the two that make the ratio larger add
    up as squares, and so do the two that make it smaller (MOVER: Donner and Zou, "Closed-form confidence intervals for
    functions of the normal mean and standard deviation", 2012). The p-value is that of the side on which 1 lies.
    """
    value = second.latency_ms / first.latency_ms
    below, above = _log_errors(first), _log_errors(second)
    if below is None or above is None:
        return Ratio(value, None, None, None)
    lower_error, upper_error = math.hypot(above[0], below[1]), math.hypot(above[1], below[0])
    quantile = float(norm.ppf((1 + CONFIDENCE) / 2))
    distance = abs(math.log(value))
    error = lower_error if value > 1 else upper_error
    p_value = 2 * float(norm.sf(distance / error)) if error > 0 else float(distance == 0)
    return Ratio(value, value * math.exp(-quantile * lower_error), value * math.exp(quantile * upper_error), p_value)


def _log_errors(known: KnownLatency) -> tuple[float, float] | None:
    """Standard errors of the logarithm, downwards and upwards; None where there is no interval."""
    if known.low_ms is None or known.high_ms is None or known.confidence is None:
        return None
    quantile = float(norm.ppf((1 + known.confidence) / 2))
    return math.log(known.latency_ms / known.low_ms) / quantile, math.log(known.high_ms / known.latency_ms) / quantile


def _adjusted(p_values: list[float | None]) -> list[float | None]:
    present = [p for p in p_values if p is not None]
    if not present:
        return p_values
    adjusted: Iterator[float] = iter(false_discovery_control(present, method="bh").tolist())
    return [None if p is None else next(adjusted) for p in p_values]


def differences(first: OperatorTable, second: OperatorTable) -> dict[str, list[str]]:
    """In what two tables are not of the same kind: what of each, by name."""
    one, other = _circumstances(first), _circumstances(second)
    return {
        name: [one.get(name, "not known"), other.get(name, "not known")]
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    }


def _circumstances(table: OperatorTable) -> dict[str, str]:
    found = {"device": table.device_model}
    if not isinstance(table, Table):
        return found | {"source": table.source.sentence}
    found |= {"version": str(table.version), "published": f"{table.published_at:%Y-%m-%d %H:%M}"}
    return found | _flattened(table.protocol.model_dump(mode="json"))


def _flattened(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= _flattened(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(value)
    return found
