"""Calibrations beside table versions, and predictions with them. Every latency in one comes from a measurement here."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from latency_contract.calibrations import (
    MIN_NETWORKS,
    CalibratedNetwork,
    Calibration,
    CalibrationRequest,
    choose_form,
    least_squares,
    left_out,
)
from latency_contract.canonical import canonical_json
from latency_contract.operators import Network, subject_adapter
from latency_contract.predictions import Prediction, PredictionQuery, add_up, predicted
from latency_contract.tables import Latency, Table
from latency_service.errors import CannotCalibrate, NotInTable
from latency_service.latencies import newest_latencies
from latency_service.models import CalibrationRow, SubjectRow, TableVersionRow


def calibrate(session: Session, table: Table, request: CalibrationRequest, *, now: datetime) -> Calibration:
    """A new calibration of a table version; the last one where it would say the same.

    Raises:
        NotInTable: the version does not hold an operator.
        CannotCalibrate: a network is not measured under the table's protocol, or they do not determine a fit.
    """
    # One calibrates a version at a time, and who comes second is given what the first has made.
    version = select(TableVersionRow).where(
        TableVersionRow.table_id == table.table_id, TableVersionRow.version == table.version
    )
    session.execute(version.with_for_update(key_share=True))
    missing = [subject_id for subject_id in request.operator_ids if subject_id not in table.by_subject]
    if missing:
        raise NotInTable(
            f"Version {table.version} of the table does not hold operator {missing[0]} ({len(missing)} missing)."
            " Have it measured and publish a new version: padnas-client table build."
        )
    networks = _measured(session, table, request)
    terms = [add_up(network.operators, table.by_subject) for network, _ in networks]
    latencies_ms = [latency.latency_ms for _, latency in networks]
    sums = [one.terms for one in terms]
    try:
        fit = least_squares(choose_form(sums, latencies_ms), sums, latencies_ms)
        by_others_ms = left_out(sums, latencies_ms)
    except ValueError as error:
        raise CannotCalibrate(f"These networks do not determine a calibration: {error}.") from error
    judged = tuple(
        CalibratedNetwork(
            subject_id=network.id,
            key=network.key,
            operators=tuple(operator.key for operator in network.operators),
            measurement_id=latency.measurement_id,
            sum_ms=added.terms.sum_ms,
            sum_deviation_ms=added.above_ms or 0.0,
            activations_m=added.terms.activations_m,
            latency_ms=latency.latency_ms,
            low_ms=latency.low_ms,
            high_ms=latency.high_ms,
            predicted_ms=predicted_ms,
        )
        for (network, latency), added, predicted_ms in zip(networks, terms, by_others_ms, strict=True)
    )
    errors_pct = [abs(network.error_pct) for network in judged]
    made = Calibration(
        table_id=table.table_id,
        table_version=table.version,
        space=request.space,
        measurements={s: table.by_subject[s].measurement_id for s in sorted(request.operator_ids)},
        calibrated_at=now,
        form=fit.form,
        coefficients=fit.coefficients,
        residual_pct=100 * fit.spread,
        degrees=fit.degrees,
        left_out_mape_pct=sum(errors_pct) / len(errors_pct),
        left_out_worst_pct=max(errors_pct),
        networks=judged,
    )
    for last in history(session, table):
        if last == made.model_copy(update={"calibrated_at": last.calibrated_at}):
            return last
    session.add(
        CalibrationRow(
            table_id=table.table_id, table_version=table.version, calibrated_at=now, document=canonical_json(made)
        )
    )
    session.flush()
    return made


def history(session: Session, table: Table) -> list[Calibration]:
    """Every calibration that holds for a table version, the newest first; also those of earlier versions which have
    the same measurements of the operators that they hold for."""
    rows = select(CalibrationRow).where(
        CalibrationRow.table_id == table.table_id, CalibrationRow.table_version <= table.version
    )
    documents = session.scalars(rows.order_by(CalibrationRow.id.desc()))
    return [one for row in documents if table.holds(one := Calibration.model_validate_json(row.document))]


def predict(session: Session, table: Table, query: PredictionQuery) -> list[Prediction]:
    """Latencies of networks by a table version. Raises NotInTable."""
    calibrated = table.with_calibrations(history(session, table))
    found = []
    for network in query.networks:
        missing = [operator.key for operator in network.operators if operator.id not in table.by_subject]
        if missing:
            raise NotInTable(
                f"Version {table.version} of the table does not hold {missing[0]} ({len(missing)} operators of"
                f" {network.key} are missing). Have them measured and publish a new version: padnas-client table build."
            )
        calibration = calibrated.calibration_for(network.operators)
        added = add_up(network.operators, table.by_subject)
        found.append(predicted(added, calibration, confidence=query.confidence))
    return found


def _measured(session: Session, table: Table, request: CalibrationRequest) -> Sequence[tuple[Network, Latency]]:
    """The networks and their newest latencies that count, in the order asked. Raises CannotCalibrate."""
    ids = list(dict.fromkeys(request.network_ids))
    if len(ids) < MIN_NETWORKS:
        raise CannotCalibrate(f"Only {len(ids)} networks are named, and {MIN_NETWORKS} are needed. Measure more.")
    known = newest_latencies(session, ids, device_model=table.device_model, protocol=table.protocol)
    rows = session.execute(select(SubjectRow.id, SubjectRow.document).where(SubjectRow.id.in_(list(known))))
    found: dict[str, tuple[Network, Latency]] = {}
    for subject_id, document in rows:
        network = subject_adapter.validate_json(document)
        if isinstance(network, Network):
            found[subject_id] = (network, known[subject_id])
    if unknown := [subject_id for subject_id in ids if subject_id not in found]:
        raise CannotCalibrate(
            f"{len(unknown)} of {len(ids)} networks are not measured on {table.device_model} under this protocol,"
            f" among them {unknown[0]}. Have them measured first."
        )
    offered = set(request.operator_ids)
    for network, _ in found.values():
        if stray := [operator.key for operator in network.operators if operator.id not in offered]:
            raise CannotCalibrate(f"{network.key} has {stray[0]}, which is none of the operators to calibrate for.")
    return [found[subject_id] for subject_id in ids]
