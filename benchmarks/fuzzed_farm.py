"""A farm in which something exists under every name that a request can have, for requests that are drawn.

Two phone models with tables and calibrations, a unit in quarantine, failed jobs and searches, as tests of the dashboard
have them; and a unit with a live lease and more in the queue.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from sqlalchemy import update

from benchmarks import filled_farm
from latency_contract.canonical import canonical_json
from latency_contract.jobs import JobState
from latency_contract.operators import Network, qualified_layers
from latency_contract.tables import Purpose, table_id
from latency_service import calibrations, latencies, queue, tables
from latency_service.database import Database
from latency_service.models import DeviceRow, JobRow
from latency_service.settings import Settings
from tests.latency_service import shown_farm

CLIENT = "fuzz-client"  # also the name of its token
MODEL, SERIAL = "Pixel 3", "89AX0KCQ1"
HELD_MODEL, HELD_SERIAL = "Pixel 6", "1C091FDF2"  # in quarantine
MEASURED, WANTED, LEASED = 12, 4, 2  # operators
OF_HELD_UNITS = ("POST /v1/devices/{serial}/checks", "DELETE /v1/devices/{serial}/quarantine")


class FuzzedFarm:
    """Filled once; what requests change is laid out again as often as wanted."""

    def __init__(self, database: Database) -> None:
        self._database = database
        operators = filled_farm.operators(MEASURED + WANTED)
        measured, self._wanted = operators[:MEASURED], operators[MEASURED:]
        shown_farm.fill(database, measured, now=datetime.now(UTC))
        with database.writing() as session:
            filled_farm.store_converted(session, [shown_farm.PROTOCOL.reference, *self._wanted])
            identity = table_id(device_model=MODEL, protocol_id=shown_farm.PROTOCOL.id)
            table = tables.find(session, identity, version=1)
            calibration = calibrations.history(session, table)[0]
        network = Network(operators=(measured[0], measured[0]))
        asked = [subject.model_dump(mode="json") for subject in (measured[0], self._wanted[0], network)]
        self._known = {
            "device": MODEL,
            "serial": SERIAL,
            "client": CLIENT,
            "key": measured[0].key,
            "protocol_id": shown_farm.PROTOCOL.id,
            "sha256": filled_farm.MODEL_SHA256,
            "measurement_id": table.entries[0].measurement_id,
            "table_id": identity,
            "version": 1,
            "subjects": asked,
            "layers": [1] * len(asked),
            "subject_ids": [operator.id for operator in self._wanted],
            "operator_ids": list(calibration.measurements),
            "network_ids": [one.subject_id for one in calibration.networks],
            "networks": [network.model_dump(mode="json")],
        }
        self._files = {"PUT /v1/models/{sha256}": filled_farm.MODEL, "POST /v1/conversions": _weights(network)}
        self.lay_out()

    def known(self, operation: str) -> Mapping[str, Any]:
        """What exists, by its name in requests of an operation; `body` where that is a file."""
        known = dict(self._known)
        if operation in OF_HELD_UNITS:
            known["serial"] = HELD_SERIAL
        if operation in self._files:
            known["body"] = self._files[operation]
        return known

    def lay_out(self) -> None:
        """Units, queue and lease, as they are before a request changes them."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            for serial, model in ((SERIAL, MODEL), (HELD_SERIAL, HELD_MODEL)):
                row = shown_farm.unit(session, serial, model=model, now=now)
                row.faults, row.blocked_until, row.quarantine = 0, None, None
            usual = {"low_ms": 0.98, "usual_ms": 1.0, "high_ms": 1.02}  # as the rounds have it that are known
            row.quarantine = canonical_json(shown_farm.quarantine(now=now, text="").model_copy(update=usual))
            of_model = (JobRow.device_model == MODEL, JobRow.state.in_((JobState.QUEUED, JobState.LEASED)))
            session.execute(update(JobRow).where(*of_model).values(state=JobState.CANCELLED, lease_token=None))
            queue.request(
                session, [operator.id for operator in self._wanted], device_model=MODEL, protocol=shown_farm.PROTOCOL,
                client=CLIENT, owner=CLIENT, purpose=Purpose.TABLE, now=now,
            )  # fmt: skip
            unit = session.get_one(DeviceRow, SERIAL)
            lease = latencies.lease(session, unit, max_jobs=LEASED, settings=Settings(), now=now)
        assert lease is not None, "there is work"
        job_ids = [job.job_id for job in lease.jobs]
        measurement = filled_farm.measurement(lease.jobs[0].subject.id, serial=SERIAL).model_dump(mode="json")
        self._known |= {
            "token": lease.token,
            "job_id": job_ids[0],
            "suspects": job_ids,
            "measurement": measurement,
            "rounds": measurement["rounds"],
        }


def _weights(network: Network) -> bytes:
    """A network of zeros, as POST /v1/conversions is sent it."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, layer in qualified_layers(network):
        tensors[f"{name}.weight"] = np.zeros(layer.weight_shape, np.float32)
        tensors[f"{name}.bias"] = np.zeros(layer.out_channels, np.float32)
    return save(tensors, {"subject": canonical_json(network)})
