"""A farm to look at: two phone models with tables, a unit that rests and one in quarantine, failed jobs, searches; and
names that mean harm.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import count, islice, product
from random import Random

from sqlalchemy.orm import Session

from latency_contract.calibrations import CalibrationRequest
from latency_contract.canonical import canonical_json
from latency_contract.devices import DeviceKind, DeviceReport, Quarantine
from latency_contract.estimators import UNKNOWN
from latency_contract.jobs import JobState
from latency_contract.measurements import DeviceState, Measurement, Provenance, RejectedRound, Round
from latency_contract.operators import Conv, Head, IBConv, Network, Subject
from latency_contract.protocols import Protocol
from latency_contract.searches import BestFound, SearchReport, SearchState
from latency_contract.tables import Table
from latency_service import calibrations, devices, searches, tables, units
from latency_service.database import Database
from latency_service.models import DeviceRow, JobRow, MeasurementRow
from latency_service.settings import Settings
from latency_service.subjects import store_subjects

HOSTILE = "</pre><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp;"
PROTOCOL = Protocol(runtime="litert", runtime_version="2.3.0", core_mask="80")
Operators = Sequence[Conv | IBConv | Head]
NETWORKS = 12  # that a calibration is made with


def unit(session: Session, serial: str, *, model: str, now: datetime, text: str = "") -> DeviceRow:
    return devices.report(
        session,
        DeviceReport(
            serial=serial, model=model, kind=DeviceKind.ANDROID, soc=f"Snapdragon 845{text}",
            os_build=f"google/blueline/blueline:12/SP1A.210812.016.C2{text}", protocol=PROTOCOL,
        ),
        now=now,
    )  # fmt: skip


def measured(
    operator: Conv | IBConv | Head, *, serial: str, speed: float, random: Random, now: datetime, text: str = ""
) -> Measurement:
    """About as long as its multiply-accumulates take."""
    floor_ms = speed * (0.02 + operator.macs / 8e6)
    return rounds_about(operator, floor_ms, serial=serial, speed=speed, random=random, now=now, text=text)


def rounds_about(
    subject: Subject, floor_ms: float, *, serial: str, speed: float, random: Random, now: datetime, text: str
) -> Measurement:
    """With noise that only ever adds time."""
    noise = 0.12 if random.random() < 0.04 else 0.004
    rounds = tuple(
        Round(
            started_at=now + timedelta(seconds=n),
            samples_ms=tuple(floor_ms * (1 + noise * random.expovariate(1.0)) for _ in range(5)),
            reference_before_ms=speed * (0.9 + 0.01 * random.random()),
            reference_after_ms=speed * (0.9 + 0.01 * random.random()),
        )
        for n in range(8)
    )
    before = DeviceState(
        governor="schedutil", frequency_khz=2803200, max_frequency_khz=2803200, temperature_c=34.5, thermal_status=0,
        battery_pct=81, battery_c=29.0, charging=True, screen_on=False,
    )  # fmt: skip
    after = before.model_copy(update={"temperature_c": 38.9})
    hot = before.model_copy(update={"temperature_c": 61.0, "max_frequency_khz": 1766400})
    reason = f"the cap on the frequency fell to 1.77 GHz{text}"
    rejected = RejectedRound(round=rounds[0], reason=reason, before=before, after=hot)
    return Measurement.from_rounds(
        rounds,
        subject_id=subject.id,
        stopping=PROTOCOL.stopping,
        pooled=UNKNOWN,
        quiet_reference_ms=0.9 * speed,
        rejected=(rejected,),
        provenance=Provenance(
            device_serial=serial, os_build=f"12{text}", soc="SDM845", model_sha256="a" * 64,
            runner=f"benchmark_model{text}", runner_sha256="b" * 64, core_mask="80", before=before, after=after,
            unreadable=after.unreadable, started_at=now, finished_at=now + timedelta(seconds=8),
        ),
    )  # fmt: skip


def store(
    session: Session, subjects: Sequence[Subject], made: Sequence[Measurement], *, model: str, now: datetime
) -> None:
    """Jobs that are done, and their measurements."""
    store_subjects(session, subjects)
    table = {"device_model": model, "protocol_id": PROTOCOL.id}
    jobs = [
        JobRow(**table, subject_id=m.subject_id, precision="float32", state=JobState.DONE, priority=1, created_at=now)
        for m in made
    ]
    session.add_all(jobs)
    session.flush()
    session.add_all(
        MeasurementRow(
            **table, subject_id=m.subject_id, job_id=job.id, device_serial=m.provenance.device_serial,
            latency_ms=m.latency_ms, low_ms=m.low_ms, high_ms=m.high_ms, confidence=m.confidence, verdict=m.verdict,
            rounds=len(m.rounds), measured_at=now, reference_ms=units.reference_floor_ms(m.rounds),
            document=m.model_dump_json(), has_evidence=True,
        )
        for job, m in zip(jobs, made, strict=True)
    )  # fmt: skip
    session.flush()


def calibrate(
    session: Session, table: Table, operators: Operators, *, serial: str, random: Random, now: datetime, text: str
) -> None:
    """With networks of those operators that can follow themselves and each other."""
    chained = [o for o in operators if o.output_shape == (o.height, o.width, o.in_channels)]
    alike = [o for o in chained if o.output_shape == chained[0].output_shape][:3]
    chains = (chain for length in count(1) for chain in product(alike, repeat=length))
    networks = [Network(operators=chain) for chain in islice(chains, NETWORKS)]
    latency_ms = {entry.subject_id: entry.latency_ms for entry in table.entries}
    made = []
    for network in networks:
        floor_ms = 1.02 * sum(latency_ms[operator.id] for operator in network.operators)
        made.append(rounds_about(network, floor_ms, serial=serial, speed=1.0, random=random, now=now, text=text))
    store(session, networks, made, model=table.device_model, now=now)
    request = CalibrationRequest(
        space=f"basic{text}"[:100],
        operator_ids=tuple(operator.id for operator in operators),
        network_ids=tuple(network.id for network in networks),
    )
    calibrations.calibrate(session, table, request, now=now)


def queued(session: Session, operator: IBConv, *, model: str, now: datetime, **columns: object) -> None:
    store_subjects(session, [operator])
    fields = {"subject_id": operator.id, "device_model": model, "protocol_id": PROTOCOL.id, "precision": "float32"}
    session.add(JobRow(**{**fields, "state": JobState.QUEUED, "priority": 1, "created_at": now} | columns))


def quarantine(*, now: datetime, text: str) -> Quarantine:
    return Quarantine(
        protocol_id=PROTOCOL.id, reason=f"the reference operator takes 21 % longer than usual; let it cool down{text}",
        since=now - timedelta(minutes=50), imposed_at=now - timedelta(minutes=40), low_ms=0.52, usual_ms=0.54,
        high_ms=0.57, failed_checks=2, check_at=now + timedelta(minutes=9),
    )  # fmt: skip


def search(name: str, *, state: SearchState, now: datetime, text: str = "") -> SearchReport:
    return SearchReport(
        name=f"{name}{text}"[:100], device="Pixel 3", space=f"basic{text}"[:100], state=state,
        started_at=now - timedelta(hours=3), stage=2, stages=3, doing=f"stage 2: searching{text}"[:100], done=17,
        total=41,
        best=BestFound(accuracy=0.713, latency_ms=64.2),
    )  # fmt: skip


def fill(database: Database, operators: Operators, *, now: datetime, text: str = "") -> None:
    """`text` stands wherever the wire lets free words in."""
    random, settings = Random(0), Settings()
    fleet = {
        "Pixel 3": (("89AX0KCQ1", 1.0), ("89AX0KCQ2", 1.01), ("8BTY0MZ77", 1.22)),
        "Pixel 6": (("1A051FDF6", 0.6),),
    }
    with database.writing() as session:
        for model, phones in fleet.items():
            for serial, _ in phones:
                unit(session, serial, model=model, now=now, text=text)
            shares = [operators[n :: len(phones)] for n in range(len(phones))]
            for (serial, speed), share in zip(phones, shares, strict=True):
                made = [measured(o, serial=serial, speed=speed, random=random, now=now, text=text) for o in share]
                store(session, share, made, model=model, now=now)
                row = session.get_one(DeviceRow, serial)
                row.measured_steady, row.last_measured_at = len(share), now - timedelta(minutes=2)
                row.last_temperature_c = 38.9 + 4 * random.random()
            table = tables.publish(session, device_model=model, protocol=PROTOCOL, now=now)
            calibrate(session, table, operators, serial=phones[0][0], random=random, now=now, text=text)
        silent = unit(session, "8AZX0R5T9", model="Pixel 3", now=now - timedelta(hours=5), text=text)
        silent.last_temperature_c = 31.0
        resting = unit(session, "1B071FDF9", model="Pixel 6", now=now, text=text)
        for _ in range(7):
            resting.blocked_until = None
            fault = f"the phone is unauthorized: unlock it and allow USB debugging for this computer{text}"
            devices.open_breaker(resting, fault=fault, settings=settings, random=random, now=now)
        held = unit(session, "1C091FDF2", model="Pixel 6", now=now, text=text)
        held.quarantine = canonical_json(quarantine(now=now, text=text))
        small = IBConv(
            height=14, width=14, in_channels=80, out_channels=80, kernel=11, stride=1, expansion=1, residual=False
        )
        for n in range(1, 14):
            queued(session, small.model_copy(update={"height": n}), model="Pixel 3", now=now - timedelta(minutes=n))
        for n in range(20, 24):
            lease = {"state": JobState.LEASED, "leased_by": "89AX0KCQ1", "lease_token": "t" * 32, "priority": 0}
            expires = {"lease_expires_at": now + timedelta(seconds=41), "attempts": 1}
            queued(session, small.model_copy(update={"height": n}), model="Pixel 3", now=now, **lease, **expires)
        for n in range(30, 32):
            error = f"benchmark_model ended with signal 11 (SIGSEGV).\nINFO: Loaded model\nERROR: no such kernel{text}"
            failed = {"state": JobState.FAILED, "error": error, "failed_at": now - timedelta(hours=n - 29)}
            queued(session, small.model_copy(update={"height": n}), model="Pixel 6", now=now, **failed)
        for name, state in (("pixel3-basic-seed2", SearchState.RUNNING), ("pixel3-basic-seed1", SearchState.FINISHED)):
            said = search(name, state=state, now=now, text=text)
            searches.report(session, name, said, owner="", now=now - timedelta(seconds=len(state)))
