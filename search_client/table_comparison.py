"""Two tables side by side, operator by operator: two versions, two devices, two protocols, or somebody else's.

What is compared, and what significance means here, is in latency_contract/comparisons.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from latency_contract.comparisons import FALSE_DISCOVERIES, Compared, compare_latencies
from latency_contract.tables import Table
from search_client.imported_tables import AnyTable, OperatorTable, describe, known_latency, of_operators

LEAST_FOR_RANKS = 3  # operators


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
    """Operator by operator (latency_contract/comparisons.py says how).

    Raises:
        ValueError: one is a linear model, which knows no operators.
    """
    one_table, other_table = of_operators(first), of_operators(second)
    by_key = {entry.key: known_latency(entry) for entry in one_table.entries}
    other_by_key = {entry.key: known_latency(entry) for entry in other_table.entries}
    return Comparison(
        one_table,
        other_table,
        compare_latencies(by_key, other_by_key),
        tuple(key for key in by_key if key not in other_by_key),
        tuple(key for key in other_by_key if key not in by_key),
    )


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
