"""Calibrations of made-up networks, for the tests of whatever reads one."""

from collections.abc import Mapping, Sequence

from latency_contract.calibrations import (
    CalibratedNetwork,
    Calibration,
    Terms,
    choose_form,
    least_squares,
    left_out,
)
from tests.conftest import START


def calibration_of(
    terms: Sequence[Terms],
    latencies_ms: Sequence[float],
    *,
    measurements: Mapping[str, int],
    sum_deviation_ms: float = 0.0,
    known_within: float = 0.01,
    table_id: str = "0" * 64,
) -> Calibration:
    """What the service would make of these."""
    fit = least_squares(choose_form(terms, latencies_ms), terms, latencies_ms)
    networks = tuple(
        CalibratedNetwork(
            subject_id=f"{index:064x}", key=f"Network_{index}", operators=("operator",) * int(one.operators),
            measurement_id=index, sum_ms=one.sum_ms, sum_deviation_ms=sum_deviation_ms, activations_m=one.activations_m,
            latency_ms=ms, low_ms=(1 - known_within) * ms, high_ms=(1 + known_within) * ms, predicted_ms=by_others_ms,
        )
        for index, (one, ms, by_others_ms) in enumerate(
            zip(terms, latencies_ms, left_out(terms, latencies_ms), strict=True)
        )
    )  # fmt: skip
    errors = [abs(network.error_pct) for network in networks]
    return Calibration(
        table_id=table_id, table_version=1, space="tiny", measurements=dict(measurements), calibrated_at=START,
        form=fit.form, coefficients=fit.coefficients, residual_pct=100 * fit.spread, degrees=fit.degrees,
        left_out_mape_pct=sum(errors) / len(errors), left_out_worst_pct=max(errors), networks=networks,
    )  # fmt: skip
