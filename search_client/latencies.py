"""Latencies from the service: have subjects measured, publish and fetch tables."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from latency_contract.calibrations import Calibration, CalibrationRequest, newest
from latency_contract.connection import NotThisService, ServiceConnection, ServiceUnreachable
from latency_contract.devices import Device, UnitComparison
from latency_contract.measurements import Measurement
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import Conv, Head, IBConv, Subject
from latency_contract.tables import (
    MAX_QUERY,
    Latency,
    LatencyAnswer,
    LatencyEntry,
    LatencyQuery,
    LatencyRelease,
    LatencyStatus,
    Purpose,
    Released,
    Table,
    TablePublication,
    TableSummary,
    table_id,
)
from search_client.errors import NoAgent, NoSuchDevice, NotMeasurable

POLL_S = 0.5  # between two looks at what is still missing
LEAST_OF_AN_ID = 8  # digits of a table's id by which it may be named
NO_AGENT_S = 20.0  # a device without an agent for so long is said to have none; agents take some seconds to start

SAY_AGAIN_S = 60.0  # between two lines about what is waited for

OnProgress = Callable[[int], None]  # subjects measured so far
T = TypeVar("T")


class LatencyService:
    """The service as one search sees it: one device, one name to be known by."""

    def __init__(
        self,
        connection: ServiceConnection,
        *,
        device: str | None,
        client: str,
        protocol_id: str | None = None,
        wait: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`device` may be None where the service knows just one device model; `wait`: for the service, for the device,
        and for an agent that measures on it, however long.

        Of several units of a model, the protocol is that of the one seen last; with `protocol_id`, of one that has it,
        if any has.

        `say` is given a line about what is waited for, and again every minute; not while devices measure.

        Raises:
            NoSuchDevice: the service does not know the device, or there are several to choose from.
        """
        self._connection = connection
        self._client = client
        self._wait = wait
        self._say = say
        self._last_said = -math.inf
        self.device = self._find_device(device, protocol_id=protocol_id)

    def give_file(self, content: bytes) -> TFLiteModel:
        """Send a TFLite file that is to be measured as it is; returns the subject to ask for.

        Raises:
            ServiceRefused: it is no TFLite file, or too large.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        return self._patiently(
            lambda: self._connection.ask("PUT", f"/v1/models/{sha256}", TFLiteModel, content=content)
        )

    def request(
        self, subjects: Sequence[Subject], *, purpose: Purpose, layers: Mapping[str, int] | None = None
    ) -> None:
        """Have subjects queued, and come back once an agent is at work. `layers` counts, by id, where each is used.

        Raises:
            NoAgent: something is to be measured, nobody does, and this search was not told to wait.
        """
        answer = self._ask(subjects, purpose=purpose, queue_missing=True, layers=layers)
        deadline = time.monotonic() + NO_AGENT_S
        while not (answer.device_alive or self._wait or _all_measured(answer)):
            if time.monotonic() > deadline:
                raise _no_agent(answer)
            time.sleep(POLL_S)
            answer = self._ask(subjects, purpose=purpose, queue_missing=False)

    def measured(
        self,
        subjects: Sequence[Subject],
        *,
        purpose: Purpose,
        on_progress: OnProgress,
        layers: Mapping[str, int] | None = None,
        newer_than: int = 0,
    ) -> list[Latency]:
        """Latencies of subjects, waiting until the last one is measured. `layers` as for `request`; measurements whose
        id is no higher than `newer_than` do not count.

        Raises:
            NoAgent: the device has no agent at work, and this search was not told to wait for one.
            NotMeasurable: some subjects failed on the device.
        """
        entries = self.settled(subjects, purpose=purpose, on_progress=on_progress, layers=layers, newer_than=newer_than)
        _none_may_have_failed(entries, device_model=self.device.model)
        return [entry.latency for entry in entries if entry.latency is not None]

    def settled(
        self,
        subjects: Sequence[Subject],
        *,
        purpose: Purpose,
        on_progress: OnProgress,
        layers: Mapping[str, int] | None = None,
        newer_than: int = 0,
    ) -> Sequence[LatencyEntry]:
        """What became of subjects, waiting until each is measured or has failed. Options as for `measured`.

        Raises:
            NoAgent: the device has no agent at work, and this search was not told to wait for one.
        """
        ask = partial(self._ask, subjects, purpose=purpose, layers=layers, newer_than=newer_than)
        answer = ask(queue_missing=True)
        last_alive = time.monotonic()
        while True:
            count = Counter(entry.status for entry in answer.entries)
            on_progress(count[LatencyStatus.MEASURED])
            if count[LatencyStatus.MEASURED] + count[LatencyStatus.FAILED] == len(subjects):
                break
            if answer.device_alive:
                last_alive = time.monotonic()
            elif time.monotonic() - last_alive > NO_AGENT_S and not self._wait:
                raise _no_agent(answer)
            if answer.standstill is not None:
                missing = len(subjects) - count[LatencyStatus.MEASURED] - count[LatencyStatus.FAILED]
                self._say_at_times(f"waiting for {missing} latencies of {answer.device_model}: {answer.standstill}")
            time.sleep(POLL_S)
            # Asking with queue_missing again would retry what has failed, so only the missing is looked at.
            missing_any = count[LatencyStatus.MISSING] > 0
            answer = ask(queue_missing=missing_any)
        return answer.entries

    def measured_anew(self, subjects: Sequence[Subject], *, purpose: Purpose, on_progress: OnProgress) -> list[Latency]:
        """Latencies of subjects as they are now, whatever is known of them. Raises as `measured`."""
        known = self._ask(subjects, purpose=purpose, queue_missing=False).entries
        newest = max((one.latency.measurement_id for one in known if one.latency is not None), default=0)
        return self.measured(subjects, purpose=purpose, on_progress=on_progress, newer_than=newest)

    def measure_again(self, operators: Sequence[Conv | IBConv | Head], *, layers: Mapping[str, int]) -> None:
        """Queue what is measured already, behind everything that is not. Nobody waits for it."""
        self._ask(
            operators, purpose=Purpose.REFINEMENT, queue_missing=True, measure_again=True, layers=layers, patient=False
        )

    def complete(self, operators: Sequence[Conv | IBConv | Head]) -> bool:
        """Whether every operator is measured by now. It is asked while something trains: nobody waits for a service.

        Raises:
            NotMeasurable: one never will be.
            ServiceUnreachable: ask again later.
        """
        answer = self._ask(operators, purpose=Purpose.SEARCH, queue_missing=False, patient=False)
        _none_may_have_failed(answer.entries, device_model=answer.device_model)
        return _all_measured(answer)

    def publish(self, *, patient: bool = True) -> Table:
        """The table as it stands, as an immutable version. `patient`: wait for the service where told to."""
        publication = TablePublication(device=self.device.model, protocol_id=self.device.protocol.id)

        def published() -> Table:
            table = self._connection.ask("POST", "/v1/tables", Table, body=publication)
            return with_calibrations(self._connection, table)

        return self._patiently(published) if patient else published()

    def published(self) -> Table:
        """The last published version."""
        identity = table_id(device_model=self.device.model, protocol_id=self.device.protocol.id)
        return self._patiently(
            lambda: with_calibrations(self._connection, self._connection.ask("GET", f"/v1/tables/{identity}", Table))
        )

    def calibrate(self, table: Table, request: CalibrationRequest) -> Calibration:
        """Have a version calibrated with networks that are measured.

        Raises:
            ServiceRefused: they do not determine a calibration, or the version lacks an operator.
        """
        path = f"/v1/tables/{table.table_id}/versions/{table.version}/calibrations"
        return self._patiently(lambda: self._connection.ask("POST", path, Calibration, body=request))

    def release(self, subjects: Sequence[Conv | IBConv | Head] | None = None) -> int:
        """This search needs these subjects (or any) no more; returns how many jobs were cancelled for it."""
        parts = [None] if subjects is None else _parts([subject.id for subject in subjects])
        releases = [LatencyRelease(client=self._client, subject_ids=part) for part in parts]
        path = "/v1/latencies/release"
        return sum(self._connection.ask("POST", path, Released, body=release).cancelled for release in releases)

    def _ask(
        self,
        subjects: Sequence[Subject],
        *,
        purpose: Purpose,
        queue_missing: bool,
        measure_again: bool = False,
        layers: Mapping[str, int] | None = None,
        newer_than: int = 0,
        patient: bool = True,
    ) -> LatencyAnswer:
        """In as many questions as it takes. `patient`: for the service, where this search was told to wait."""
        queries = [
            LatencyQuery(
                device=self.device.model,
                protocol_id=self.device.protocol.id,
                subjects=part,
                queue_missing=queue_missing,
                measure_again=measure_again,
                newer_than=newer_than,
                client=self._client,
                purpose=purpose,
                layers=tuple(layers.get(subject.id, 1) for subject in part) if layers else (),
            )
            for part in _parts(subjects)
        ]

        def answered(query: LatencyQuery) -> LatencyAnswer:
            return self._connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)

        answers = [self._patiently(partial(answered, query)) if patient else answered(query) for query in queries]
        return answers[-1].model_copy(update={"entries": tuple(entry for one in answers for entry in one.entries)})

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What the service answers; where this search was told to wait, whenever that is. Raises ServiceUnreachable."""
        while True:
            try:
                return ask()
            except ServiceUnreachable as error:
                if not self._wait:
                    raise
                self._say_at_times(f"waiting: {error}")

    def _say_at_times(self, line: str) -> None:
        if time.monotonic() - self._last_said > SAY_AGAIN_S:
            self._say(line)
            self._last_said = time.monotonic()

    def _find_device(self, name: str | None, *, protocol_id: str | None) -> Device:
        """The unit that was seen last of those asked for, or of those among them with this protocol.

        An agent may need a moment to report it.
        """
        deadline = time.monotonic() + NO_AGENT_S
        while True:
            devices = self._patiently(lambda: known_devices(self._connection))
            models = list(dict.fromkeys(device.model for device in devices))
            if name is None and len(models) > 1:
                raise NoSuchDevice(f"The service knows several devices: {', '.join(models)}. Choose one with --device.")
            wanted = models[0] if name is None and models else name
            names = set() if wanted is None else {wanted.casefold()}
            asked_for = [device for device in devices if names & {device.model.casefold(), device.serial.casefold()}]
            if asked_for:
                return next((device for device in asked_for if device.protocol.id == protocol_id), asked_for[0])
            missing = f"There is no device '{name}'. The service knows: {', '.join(models)}."
            if not models:
                missing = "No agent has reported a device to the service. Start `padnas-agent run`."
            if not self._wait and (models or time.monotonic() > deadline):
                raise NoSuchDevice(missing)
            if self._wait:
                self._say_at_times(f"waiting: {missing}")
            time.sleep(POLL_S)


def known_devices(connection: ServiceConnection) -> list[Device]:
    """Every unit that has reported to the service, the one seen last first."""
    content = connection.request("GET", "/v1/devices").content
    try:
        return TypeAdapter(list[Device]).validate_json(content)
    except ValidationError as error:
        raise NotThisService(
            f"{connection.base_url} does not list devices. Is this the address of a latency service of this version?"
        ) from error


def unit_comparisons(connection: ServiceConnection, known: Sequence[Device]) -> list[UnitComparison]:
    """Units side by side, of every model that several of the known ones measure under one protocol."""
    counted = Counter((device.model, device.protocol.id) for device in known)
    return [
        connection.ask("GET", f"/v1/devices/{quote(model)}/units", UnitComparison, params={"protocol_id": protocol_id})
        for (model, protocol_id), units in counted.items()
        if units > 1
    ]


def kept_measurement(connection: ServiceConnection, measurement_id: int) -> Measurement:
    """With every round, every sample, and its provenance."""
    return connection.ask("GET", f"/v1/measurements/{measurement_id}", Measurement)


def find_table(connection: ServiceConnection, name: str) -> Table:
    """A published table by `TABLE_ID` (its first eight digits will do) or device model, and `@VERSION` if not the last.

    Raises:
        ValueError: no table has this name, or several have.
    """
    content = connection.request("GET", "/v1/tables").content
    published = TypeAdapter(list[TableSummary]).validate_json(content)

    def called(wanted: str) -> list[str]:
        return list(
            dict.fromkeys(
                summary.table_id
                for summary in published
                if wanted.casefold() == summary.device_model.casefold()
                or (len(wanted) >= LEAST_OF_AN_ID and summary.table_id.startswith(wanted))
            )
        )

    wanted, version = name, ""
    if "@" in name and not called(name):  # a device model may have one, as in "CPU @ 2.40GHz"
        wanted, _, version = name.rpartition("@")
    tables = called(wanted)
    if not tables:
        known = dict.fromkeys(f"{summary.device_model} ({summary.table_id[:12]})" for summary in published)
        raise ValueError(f"There is no table '{wanted}'. The service has: {', '.join(known) or 'none'}.")
    if len(tables) > 1:
        newest = {summary.table_id: summary for summary in reversed(published)}  # they come with the newest first
        described = [
            f"{one[:12]} (version {newest[one].version}, {newest[one].published_at:%Y-%m-%d %H:%M},"
            f" {newest[one].entries} operators)"
            for one in tables
        ]
        raise ValueError(f"{wanted} has several tables, one a protocol: {', '.join(described)}. Name one by its id.")
    (table_id_,) = tables
    if version and not version.isdecimal():
        raise ValueError(f"'{version}' is no version of a table. Write TABLE@2 for its second.")
    path = f"/v1/tables/{table_id_}" + (f"/versions/{version}" if version else "")
    return with_calibrations(connection, connection.ask("GET", path, Table))


def with_calibrations(connection: ServiceConnection, table: Table) -> Table:
    """A published version with what calibrates it: the newest for each set of operators."""
    path = f"/v1/tables/{table.table_id}/versions/{table.version}/calibrations"
    history = TypeAdapter(list[Calibration]).validate_json(connection.request("GET", path).content)
    return table.with_calibrations(newest(history))


def _parts(items: Sequence[T]) -> list[tuple[T, ...]]:
    """As many as fit into one question each."""
    return [tuple(items[start : start + MAX_QUERY]) for start in range(0, len(items), MAX_QUERY)]


def _all_measured(answer: LatencyAnswer) -> bool:
    return all(entry.status == LatencyStatus.MEASURED for entry in answer.entries)


def _none_may_have_failed(entries: Sequence[LatencyEntry], *, device_model: str) -> None:
    failed = [entry for entry in entries if entry.status == LatencyStatus.FAILED]
    if failed:
        reasons = "; ".join(f"{entry.key}: {entry.error}" for entry in failed[:3])
        raise NotMeasurable(
            f"{len(failed)} of {len(entries)} subjects cannot be measured on {device_model} ({reasons})."
            " Take them out of the search space, or ask again once their cause is mended."
        )


def _no_agent(answer: LatencyAnswer) -> NoAgent:
    missing = sum(entry.status != LatencyStatus.MEASURED for entry in answer.entries)
    return NoAgent(
        f"{missing} subjects are still to be measured on {answer.device_model}, but no agent is at work there."
        " Start `padnas-agent run`, or use --wait to wait for one."
    )
