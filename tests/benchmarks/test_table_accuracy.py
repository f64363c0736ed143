"""What the figures of accuracy say, and which networks they are of."""

import numpy as np
import pytest

from benchmarks.table_accuracy import Errors, figures_of, unseen_networks
from search_client.spaces import load_space

DEMO = load_space("demo")


def test_figures_are_those_of_the_errors() -> None:
    measured = np.array([10.0, 20.0, 30.0, 40.0])
    errors = Errors(
        measured_ms=measured,
        predicted_ms=measured * np.array([1.01, 0.98, 1.04, 0.93]),
        usual_ms=measured[::-1],
        inside=np.array([1.0, 1.0, 1.0, 0.0]),
        table_s=np.array(60.0),
        halves_pct=np.array([0.5, 1.5, 1.0, 1.0]),
        repeated_pct=np.array([0.1, 0.3, 0.2]),
        repeated_inside=np.array([1.0, 1.0, 0.0]),
    )
    values = {name: figure.value for name, figure in figures_of(errors).items()}
    assert values["mape_pct"] == pytest.approx(3.5)
    assert values["bias_pct"] == pytest.approx(-1.0)
    assert values["worst_pct"] == pytest.approx(7.0)
    shares = [values[f"within_{bound}pct_share"] for bound in (3, 5, 10)]
    assert shares == [0.5, 0.75, 1.0]
    assert values["coverage_share"] == 0.75
    assert values["coverage_off_share"] == pytest.approx(0.2)
    assert values["halves_difference_pct"] == pytest.approx(1.0)
    assert values["repeat_within_interval_share"] == pytest.approx(2 / 3)
    assert values["repeat_difference_pct"] == pytest.approx(0.2)
    assert (values["kendall_tau"], values["usual_kendall_tau"]) == (1.0, -1.0)


def test_tested_networks_are_none_of_those_that_calibrated() -> None:
    first = unseen_networks(DEMO, [], count=20)
    others = unseen_networks(DEMO, first, count=20)
    ids = {network.id for network in first} | {network.id for network in others}
    assert len(ids) == 40
