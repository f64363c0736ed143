"""Populations, against the prediction of one network at a time."""

from pathlib import Path

import numpy as np
import pytest

from latency_contract.calibrations import Form, Terms
from latency_contract.predictions import add_up
from latency_contract.student_t import quantile
from latency_contract.tables import Table
from search_client.search_problem import AdditiveLatency
from search_client.spaces import SearchSpace, load_space
from search_client.table_latencies import additive_latency, calibrated_for, predict
from tests.latency_contract.made_calibrations import calibration_of
from tests.search_client.tables import table_of

SPACE = load_space(str(Path(__file__).parent / "tiny.toml"))


def calibrated_table(per_operator_ms: float) -> Table:
    """Networks take a little more than their operators, within half a percent, and something for each operator."""
    table = table_of(SPACE, lambda operator: operator.expansion * operator.kernel)
    rng = np.random.default_rng(1)
    terms: list[Terms] = []
    while len(terms) < 20:
        one = add_up(SPACE.network(SPACE.sample(rng)).operators, table.by_subject).terms
        terms.append(one)
    latencies_ms = [
        (0.5 + 1.02 * one.sum_ms + per_operator_ms * one.operators) * (1 + 0.005 * float(rng.standard_normal()))
        for one in terms
    ]
    measurements = {entry.subject_id: entry.measurement_id for entry in table.entries}
    return table.with_calibrations([calibration_of(terms, latencies_ms, measurements=measurements)])


def drawn(space: SearchSpace, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.random.default_rng(0).integers([len(layer.choices) for layer in space.layers], size=(count, 4))


@pytest.mark.parametrize("per_operator_ms", [None, 0.0, 1.0])
def test_a_population_has_the_latencies_and_intervals_of_its_networks(per_operator_ms: float | None) -> None:
    """Not calibrated; calibrated in the plain form; in a richer one."""
    if per_operator_ms is None:
        table = table_of(SPACE, lambda operator: operator.expansion * operator.kernel)
    else:
        table = calibrated_table(per_operator_ms)
        assert table.calibrations[0].form is (Form.OPERATORS if per_operator_ms else Form.SUM)
    latency, genes = additive_latency(SPACE, table), drawn(SPACE, 30)
    intervals = latency.intervals(genes)
    assert intervals is not None
    for row, latency_ms, low_ms, high_ms in zip(genes, latency.of(genes), *intervals, strict=True):
        choices = tuple(layer.choices[gene] for layer, gene in zip(SPACE.layers, row, strict=True))
        one = predict(SPACE.network(choices), choices, table)
        assert one.calibrated is (per_operator_ms is not None)
        assert (latency_ms, low_ms, high_ms) == pytest.approx((one.latency_ms, one.low_ms, one.high_ms), rel=1e-9)


def test_a_bound_that_holds_with_a_probability_is_a_one_sided_quantile() -> None:
    table = calibrated_table(0.0)
    latency, genes = additive_latency(SPACE, table, confidence=0.9), drawn(SPACE, 30)
    assert latency.spread is not None
    degrees = table.calibrations[0].degrees
    expected = latency.of(genes) + quantile(0.9, degrees=degrees) * latency.spread.deviations(genes)[1]
    assert latency.at_most(genes) == pytest.approx(expected)
    as_predicted = additive_latency(SPACE, table)
    assert isinstance(as_predicted, AdditiveLatency)
    assert (as_predicted.at_most(genes) == as_predicted.of(genes)).all()


def test_a_network_with_an_operator_that_was_not_calibrated_is_not() -> None:
    table = calibrated_table(0.0)
    made = table.calibrations[0]
    fewer = dict(list(made.measurements.items())[1:])
    table = table.with_calibrations([made.model_copy(update={"measurements": fewer})])
    choices = ("IBConv_K3_E1", "IBConv_K3_E1", "Identity", "Identity")
    assert not predict(SPACE.network(choices), choices, table).calibrated


def test_every_network_of_a_search_is_predicted_by_the_one_calibration_of_its_space() -> None:
    """A newer one holds for fewer operators; networks of these would be predicted by that one."""
    table = calibrated_table(0.0)
    (own,) = table.calibrations
    chosen = ("IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1")
    network = SPACE.network(chosen)
    fewer = {one.id: own.measurements[one.id] for one in network.operators}
    newer = calibrated_table(1.0).calibrations[0].model_copy(update={"measurements": fewer})
    both = table.with_calibrations([newer, own])
    assert predict(network, chosen, both) != predict(network, chosen, table)
    assert calibrated_for(SPACE.operators(), both) == table
    assert predict(network, chosen, calibrated_for(SPACE.operators(), both)) == predict(network, chosen, table)


def test_a_table_that_is_calibrated_for_other_operators_alone_is_not_calibrated() -> None:
    table = calibrated_table(0.0)
    operators = load_space(str(Path(__file__).parent / "tiny.toml"), classes=7).operators()
    assert calibrated_for(operators, table) == table.with_calibrations(())
