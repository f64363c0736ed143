"""Renewing a lease in the background while its jobs are measured."""

import logging
import threading
from types import TracebackType
from typing import Self

from latency_contract.connection import ServiceConnection, ServiceError, ServiceRefused
from latency_contract.jobs import Lease, LeaseState

log = logging.getLogger(__name__)


class Heartbeat:
    """While entered, a lease is renewed at a third of its length; `lost` is set when the service refuses."""

    def __init__(self, connection: ServiceConnection, lease: Lease) -> None:
        self.lost = threading.Event()
        self._connection = connection
        self._lease = lease
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._lease.lease_s / 3):
            try:
                self._connection.ask("POST", f"/v1/leases/{self._lease.token}/renew", LeaseState)
            except ServiceRefused as refusal:
                log.warning("the lease is lost: %s", refusal)
                self.lost.set()
                return
            except ServiceError as error:
                log.warning("the lease could not be renewed, trying again: %s", error)
