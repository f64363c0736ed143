"""Student's t, against SciPy's."""

import pytest
from scipy import stats

from latency_contract.student_t import probability_within, quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 38, 99, 198])
def test_probabilities_and_quantiles_are_those_of_scipy(degrees: int) -> None:
    for t in (0.0, 0.1, 1.0, 2.5, 30.0):
        expected = stats.t.cdf(t, degrees) - stats.t.cdf(-t, degrees)
        assert probability_within(t, degrees=degrees) == pytest.approx(expected, abs=1e-12)
    for probability in (0.6, 0.9, 0.95, 0.975, 0.999):
        assert quantile(probability, degrees=degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)


@pytest.mark.parametrize("probability", [0.5, 1.0, -1.0, float("nan")])
def test_a_probability_that_is_none_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=r"above 0\.5 and below 1"):
        quantile(probability, degrees=3)


def test_without_a_degree_of_freedom_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="got 0"):
        probability_within(1.0, degrees=0)
