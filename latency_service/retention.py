"""What is not kept for ever: samples, evidence and TFLite files that can be made again. Numbers and tables always are.

Without its samples a measurement is still valid: each round keeps the one number that its latency follows from. Work is
done in small transactions, so that a service on the same database is never kept waiting for long.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, exists, func, select, text
from sqlalchemy.orm import InstrumentedAttribute

from latency_contract.jobs import JobState
from latency_contract.measurements import Measurement
from latency_service.database import Database
from latency_service.models import JobRow, MeasurementRow, ModelFileRow, ModelRow, ModelState, ProtocolRow, SubjectRow
from latency_service.subjects import lock_subjects

BATCH = 100  # measurements, or subjects, in one transaction
GIVEN = "tflite"  # kind of subjects whose file somebody sent, and nobody here could make again


class Freed(NamedTuple):
    files: int
    size_bytes: int


def drop_samples(database: Database, *, before: datetime) -> int:
    """Of rounds measured before, keep one number each. Returns the number of measurements."""
    return _lighten(database, MeasurementRow.has_samples, Measurement.without_samples, before=before)


def drop_evidence(database: Database, *, before: datetime) -> int:
    """Of measurements made before, keep only how many rounds were rejected. Returns the number of measurements."""
    return _lighten(database, MeasurementRow.has_evidence, Measurement.without_evidence, before=before)


def drop_models(database: Database, *, before: datetime, given: bool = False) -> Freed:
    """Delete TFLite files that were asked for before, and that nothing at hand needs: made here, or `given` to be
    measured as they are.

    Kept are those of queued and leased jobs, and of reference operators. One that was made here is converted anew when
    somebody asks for its subject to be measured again; one that was given has to be sent again then.
    """
    files = size_bytes = 0
    while True:
        with database.writing() as session:
            candidates = session.scalars(
                select(ModelRow.subject_id).where(_unneeded(before, given=given)).limit(BATCH)
            ).all()
            if not candidates:
                return Freed(files, size_bytes)
            # Whoever queues one of them waits now, or has done so, and the next question sees the job.
            lock_subjects(session, candidates)
            rows = session.scalars(
                select(ModelRow)
                .where(ModelRow.subject_id.in_(candidates), _unneeded(before, given=given))
                .order_by(ModelRow.subject_id)
                .with_for_update()
            ).all()
            hashes = {row.sha256 for row in rows}
            for row in rows:
                row.state, row.sha256 = ModelState.DROPPED, None
            session.flush()
            unused = and_(ModelFileRow.sha256.in_(hashes), ~exists().where(ModelRow.sha256 == ModelFileRow.sha256))
            count, size = session.execute(
                select(func.count(), func.coalesce(func.sum(func.length(ModelFileRow.content)), 0)).where(unused)
            ).one()
            session.execute(delete(ModelFileRow).where(unused).execution_options(synchronize_session=False))
        files, size_bytes = files + count, size_bytes + int(size)


def _lighten(
    database: Database,
    kept: InstrumentedAttribute[bool],
    lighter: Callable[[Measurement], Measurement],
    *,
    before: datetime,
) -> int:
    changed = 0
    while True:
        with database.writing() as session:
            rows = session.scalars(
                select(MeasurementRow)
                .where(text(kept.key), MeasurementRow.measured_at < before)  # literal, as in the partial index
                .order_by(MeasurementRow.measured_at)
                .limit(BATCH)
                .with_for_update(key_share=True)
            ).all()
            for row in rows:
                row.document = lighter(Measurement.model_validate_json(row.document)).model_dump_json()
                setattr(row, kept.key, False)
        if not rows:
            return changed
        changed += len(rows)


def _unneeded(before: datetime, *, given: bool) -> ColumnElement[bool]:
    was_given = exists().where(SubjectRow.id == ModelRow.subject_id, SubjectRow.kind == GIVEN)
    return and_(
        ModelRow.state == ModelState.READY,
        ModelRow.requested_at < before,
        was_given if given else ~was_given,
        ~exists().where(ProtocolRow.reference_id == ModelRow.subject_id),
        ~exists().where(
            JobRow.subject_id == ModelRow.subject_id,
            JobRow.precision == ModelRow.precision,
            JobRow.state.in_((JobState.QUEUED, JobState.LEASED)),
        ),
    )
