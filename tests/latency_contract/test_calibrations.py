"""Fits against NumPy's, the rule for richer forms, and what a calibration may say."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from latency_contract.calibrations import (
    Calibration,
    Form,
    Terms,
    choose_form,
    least_squares,
    left_out,
)
from tests.latency_contract.made_calibrations import calibration_of


def networks(*, count: int = 40, noise: float = 0.01, per_operator_ms: float = 0.0) -> tuple[list[Terms], list[float]]:
    """Networks that take 1 ms and 0.97 times their sum, and something for each operator."""
    rng = np.random.default_rng(0)
    terms = [
        Terms(float(rng.uniform(15, 30)), int(rng.integers(12, 24)), float(rng.uniform(2, 6))) for _ in range(count)
    ]
    errors = 1 + noise * rng.standard_normal(count)
    return terms, [
        (1 + 0.97 * one.sum_ms + per_operator_ms * one.operators) * float(error)
        for one, error in zip(terms, errors, strict=True)
    ]


@pytest.mark.parametrize("form", Form)
def test_a_fit_is_the_weighted_least_squares_of_numpy(form: Form) -> None:
    terms, latencies_ms = networks()
    sums = np.array([one.sum_ms for one in terms])
    rows = np.array([one.of(form) for one in terms]) / sums[:, None]
    expected, (residual,), *_ = np.linalg.lstsq(rows, np.array(latencies_ms) / sums, rcond=None)
    fit = least_squares(form, terms, latencies_ms)
    assert fit.coefficients == pytest.approx(tuple(expected), rel=1e-6)
    assert fit.spread == pytest.approx(math.sqrt(residual / (40 - rows.shape[1])), rel=1e-9)
    assert np.array(fit.inverse) == pytest.approx(np.linalg.inv(rows.T @ rows), rel=1e-6)


@pytest.mark.parametrize("form", Form)
def test_what_is_left_out_is_predicted_as_if_it_had_never_been_there(form: Form) -> None:
    terms, latencies_ms = networks(count=12)
    fit = least_squares(form, terms, latencies_ms)
    for index, predicted_ms in enumerate(fit.left_out_ms):
        others, theirs = [*terms[:index], *terms[index + 1 :]], [*latencies_ms[:index], *latencies_ms[index + 1 :]]
        assert predicted_ms == pytest.approx(least_squares(form, others, theirs).latency_ms(terms[index]), rel=1e-9)


def test_a_richer_form_is_used_only_where_it_wins_clearly() -> None:
    assert choose_form(*networks()) is Form.SUM
    assert choose_form(*networks(per_operator_ms=0.005)) is Form.SUM  # a tenth of a millisecond between networks
    assert choose_form(*networks(per_operator_ms=0.3)) is Form.OPERATORS


def test_predictions_that_judge_a_calibration_choose_its_form_without_what_they_predict() -> None:
    terms, latencies_ms = networks(count=12, per_operator_ms=0.3)
    others, theirs = terms[1:], latencies_ms[1:]
    by_others = least_squares(choose_form(others, theirs), others, theirs)
    assert left_out(terms, latencies_ms)[0] == by_others.latency_ms(terms[0])


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_networks_are_no_calibration(count: int) -> None:
    with pytest.raises(ValueError, match="too few for 2 coefficients"):
        least_squares(Form.SUM, *networks(count=count))


def test_networks_that_are_all_alike_are_no_calibration() -> None:
    with pytest.raises(ValueError, match="too alike"):
        least_squares(Form.SUM, [Terms(20.0, 15, 3.0)] * 12, [20.0] * 12)


def test_a_network_like_no_other_is_no_calibration_where_a_coefficient_follows_from_it_alone() -> None:
    """Left out, nothing would be known of it; its error is 0 divided by 0."""
    alone = [*([Terms(20.0, 15, 3.0)] * 9), Terms(25.0, 15, 3.0)]
    with pytest.raises(ValueError, match="is like no other"):
        least_squares(Form.SUM, alone, [20.0] * 9 + [25.0])
    terms, latencies_ms = networks(count=12)
    terms = [one._replace(operators=12) for one in terms[1:]] + [terms[0]._replace(operators=17)]
    assert choose_form(terms, latencies_ms) is not Form.OPERATORS


def test_the_interval_of_another_network_grows_with_its_distance_from_what_was_measured() -> None:
    terms, latencies_ms = networks()
    made = calibration_of(terms, latencies_ms, measurements={"0" * 64: 1}, known_within=0.0)
    near, far = Terms(22.0, 18, 4.0), Terms(80.0, 18, 4.0)
    deviations = [made.deviation_ms(one, sum_deviation_ms=0.0) / one.sum_ms for one in (near, far)]
    assert deviations[0] == pytest.approx(made.residual_pct / 100, rel=0.05)
    assert deviations[1] > 1.1 * deviations[0]


def test_what_may_move_all_networks_alike_widens_the_interval_by_as_much_as_one_moves() -> None:
    terms, latencies_ms = networks()
    certain, uncertain = (
        calibration_of(terms, latencies_ms, measurements={"0" * 64: 1}, known_within=within) for within in (0.0, 0.04)
    )
    assert uncertain.residual_pct == certain.residual_pct
    one = Terms(22.0, 18, 4.0)
    alone = certain.deviation_ms(one, sum_deviation_ms=0.0)
    wider = uncertain.deviation_ms(one, sum_deviation_ms=0.0)
    assert wider == pytest.approx(math.hypot(alone, certain.latency_ms(one) * 0.04 / 1.96), rel=0.05)
    assert "measured again, they would lie within 4.00 %" in uncertain.sentence


def test_operators_that_are_known_less_well_than_those_of_the_networks_widen_the_interval() -> None:
    terms, latencies_ms = networks()
    made = calibration_of(terms, latencies_ms, measurements={"0" * 64: 1}, sum_deviation_ms=0.2)
    one = Terms(22.0, 18, 4.0)
    usual_ms = math.sqrt(made.sum_variance) * one.sum_ms
    alone = made.deviation_ms(one, sum_deviation_ms=0.0)
    assert made.deviation_ms(one, sum_deviation_ms=usual_ms) == pytest.approx(alone)  # the residuals hold it already
    expected = math.hypot(alone, made.coefficients[1] * math.sqrt(1.0 - usual_ms**2))
    assert made.deviation_ms(one, sum_deviation_ms=1.0) == pytest.approx(expected)


def test_a_calibration_that_does_not_follow_from_its_networks_is_refused() -> None:
    made = calibration_of(*networks(), measurements={"0" * 64: 1})
    assert Calibration.model_validate_json(made.model_dump_json()) == made
    document = made.model_dump()
    for change in ({"coefficients": (0.0, 1.0)}, {"residual_pct": 0.1}, {"degrees": 39}):
        with pytest.raises(ValidationError, match="do not follow from the networks"):
            Calibration.model_validate(document | change)


def test_a_calibration_says_in_a_sentence_what_it_is() -> None:
    made = calibration_of(*networks(per_operator_ms=0.3), measurements={"0" * 64: 1})
    assert made.form is Form.OPERATORS
    assert "calibrated on 2026-01-01 with 40 networks of 'tiny'" in made.sentence
    assert "·sum +0." in made.sentence
    assert "ms per operator; residual spread" in made.sentence
