"""An agent's turn, for tests that make up what a device says: lease, answer, report, over the wire."""

from collections.abc import Callable

from latency_contract.connection import ServiceConnection
from latency_contract.jobs import Failed, Lease, LeasedJob, LeaseReport, LeaseRequest, Measured


def answer_lease(
    connection: ServiceConnection, serial: str, answer: Callable[[LeasedJob], Measured | Failed], *, max_jobs: int = 64
) -> int:
    """How many jobs the unit was given and has answered; 0 where there are none, or they are still being converted."""
    response = connection.request("POST", "/v1/leases", body=LeaseRequest(serial=serial, max_jobs=max_jobs))
    if response.status_code == 204:
        return 0
    lease = Lease.model_validate_json(response.content)
    report = LeaseReport(outcomes=tuple(answer(job) for job in lease.jobs))
    connection.request("POST", f"/v1/leases/{lease.token}/report", body=report)
    return len(lease.jobs)
