"""The queue's invariants, on a real database built by the migrations."""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from latency_contract.devices import DeviceReport
from latency_contract.jobs import JobState
from latency_contract.operators import IBConv
from latency_contract.tables import Purpose
from latency_service import conversion_queue, devices, queue
from latency_service.database import Database
from latency_service.errors import QueueFull, StaleLease
from latency_service.models import DeviceRow, JobRow, ModelRow, ModelState, WantRow
from latency_service.subjects import load_protocol, store_subjects
from tests.conftest import Clock

MAX_ATTEMPTS = 3
LEASE_S = 60.0
Make = Callable[..., IBConv]


class Farm:
    """One device model, two units, and the shortest way to every call of the queue."""

    def __init__(self, database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> None:
        self.database, self.clock = database, clock
        with database.writing() as session:
            for serial in ("A1", "A2"):
                devices.report(session, report(serial=serial), now=clock())

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self.database.writing() as session:
            yield session

    def request(
        self,
        *operators: IBConv,
        client: str = "me",
        owner: str = "",
        purpose: Purpose = Purpose.TABLE,
        ready: bool = True,
    ) -> None:
        """Queue operators, their models converted unless said otherwise."""
        ids = [operator.id for operator in operators]
        with self.writing() as session:
            store_subjects(session, operators)
            conversion_queue.request(session, ids, precision="float32", now=self.clock())
            queue.request(
                session,
                ids,
                device_model="Pixel 3",
                protocol=load_protocol(session, devices.known(session, "A1").protocol_id),
                client=client,
                owner=owner,
                purpose=purpose,
                now=self.clock(),
            )
            if ready:
                for row in session.scalars(select(ModelRow).where(ModelRow.subject_id.in_(ids))):
                    row.state = ModelState.READY

    def claim(self, serial: str = "A1", max_jobs: int = 16) -> queue.Claim | None:
        with self.writing() as session:
            device = session.get_one(DeviceRow, serial)
            return queue.claim(
                session, device, max_jobs=max_jobs, lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS, now=self.clock()
            )

    def lease(self, serial: str = "A1", max_jobs: int = 16) -> queue.Claim:
        claim = self.claim(serial, max_jobs)
        assert claim is not None
        return claim

    def complete(self, claim: queue.Claim, job_id: int | None = None) -> None:
        with self.writing() as session:
            job_id = claim.jobs[0].job_id if job_id is None else job_id
            queue.complete(session, queue.owned_jobs(session, claim.token, [job_id]))

    def release(self, claim: queue.Claim, fault: str | None = None, suspects: Collection[int] = ()) -> None:
        with self.writing() as session:
            queue.release(
                session, claim.token, device_fault=fault, suspects=suspects, max_attempts=MAX_ATTEMPTS, now=self.clock()
            )

    def reboot(self, claim: queue.Claim) -> None:
        """Every job of the lease ran when the phone went down."""
        self.release(claim, fault="the phone rebooted", suspects=[job.job_id for job in claim.jobs])

    def jobs(self) -> list[tuple[str, JobState, int]]:
        """(subject, state, attempts) of every job, oldest first."""
        with self.database.reading() as session:
            return [
                (j.subject_id, JobState(j.state), j.attempts)
                for j in session.scalars(select(JobRow).order_by(JobRow.id))
            ]

    def error(self) -> str | None:
        with self.database.reading() as session:
            return session.scalars(select(JobRow.error)).one()


@pytest.fixture
def farm(database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> Farm:
    return Farm(database, clock, report)


def test_a_subject_asked_for_twice_has_one_job(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    farm.request(operator(), client="other")
    assert [state for _, state, _ in farm.jobs()] == [JobState.QUEUED]


def test_a_claim_reads_jobs_in_the_order_of_an_index(farm: Farm, operator: Make) -> None:
    """What a lease costs must not grow with the queue: nothing sorts it."""
    farm.request(*(operator(height=h) for h in range(1, 400)))
    with farm.database.writing() as session:
        connection, sent = session.connection(), dict[str, Any]()
        event.listen(connection, "before_cursor_execute", lambda *seen: sent.update({seen[2]: seen[3]}))
        postgresql = connection.dialect.name == "postgresql"
        if postgresql:
            connection.exec_driver_sql("ANALYZE jobs")
            connection.exec_driver_sql("ANALYZE models")
        queue.claim(session, devices.known(session, "A1"), max_jobs=16, lease_s=60, max_attempts=3, now=farm.clock())
        ((claim, values),) = [one for one in sent.items() if "first" in one[0]]
        explain = "EXPLAIN " if postgresql else "EXPLAIN QUERY PLAN "
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + claim, values))
    assert plan.count("ix_jobs_claim") == 2
    assert "Sort" not in plan
    assert "ORDER BY" not in plan  # SQLite's "USE TEMP B-TREE FOR ORDER BY"


def test_a_job_without_model_is_not_leased(farm: Farm, operator: Make) -> None:
    farm.request(operator(), ready=False)
    assert farm.claim() is None


def test_a_lease_takes_a_batch_of_at_most_the_size_asked_for(farm: Farm, operator: Make) -> None:
    farm.request(*(operator(height=h) for h in range(1, 6)))
    assert len(farm.lease(max_jobs=3).jobs) == 3
    assert len(farm.lease("A2", max_jobs=3).jobs) == 2
    assert farm.claim() is None


def test_what_a_search_waits_for_comes_first_then_the_oldest(farm: Farm, operator: Make) -> None:
    first, second, urgent = operator(height=1), operator(height=2), operator(height=3)
    farm.request(first)
    farm.request(second)
    farm.request(urgent, purpose=Purpose.SEARCH)
    assert [job.subject_id for job in farm.lease().jobs] == [urgent.id, first.id, second.id]


def test_a_table_job_that_a_search_wants_too_becomes_urgent(farm: Farm, operator: Make) -> None:
    first, second = operator(height=1), operator(height=2)
    farm.request(first, second)
    farm.request(second, client="search", purpose=Purpose.SEARCH)
    assert [job.subject_id for job in farm.lease().jobs] == [second.id, first.id]


def test_two_agents_never_hold_one_job(farm: Farm, operator: Make) -> None:
    """Eight threads lease 40 jobs one by one from one database at the same time."""
    farm.request(*(operator(height=h) for h in range(1, 41)))
    held: list[int] = []

    def agent(serial: str) -> None:
        while (claim := farm.claim(serial, max_jobs=1)) is not None:
            held.extend(job.job_id for job in claim.jobs)

    threads = [threading.Thread(target=agent, args=(serial,)) for serial in ("A1", "A2") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == sorted(set(held))
    assert len(held) == 40


def test_a_lease_is_exclusive_until_its_deadline(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    farm.lease("A1")
    farm.clock.advance(LEASE_S - 1)
    assert farm.claim("A2") is None


def test_an_expired_lease_makes_the_job_eligible_again(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    farm.lease("A1")
    farm.clock.advance(LEASE_S + 1)
    assert farm.lease("A2").jobs[0].attempt == 2


def test_an_agent_that_starts_anew_need_not_wait_for_its_old_deadline(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    forgotten = farm.lease("A1")
    with farm.writing() as session:
        queue.expire_leases_of(session, "A2", now=farm.clock())
    assert farm.claim("A2") is None
    with farm.writing() as session:
        queue.expire_leases_of(session, "A1", now=farm.clock())
    assert farm.lease("A2").jobs[0].attempt == 2
    with pytest.raises(StaleLease):
        farm.complete(forgotten)


def test_renewal_moves_the_deadline(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    claim = farm.lease("A1")
    farm.clock.advance(LEASE_S - 1)
    with farm.writing() as session:
        renewal = queue.renew(session, claim.token, lease_s=LEASE_S, now=farm.clock())
    assert (renewal.remaining, renewal.serial) == (1, "A1")
    farm.clock.advance(LEASE_S - 1)
    assert farm.claim("A2") is None


def test_a_stale_token_changes_nothing(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    stale = farm.lease("A1")
    farm.clock.advance(LEASE_S + 1)
    fresh = farm.lease("A2")
    before = farm.jobs()
    with pytest.raises(StaleLease):
        farm.complete(stale)
    with pytest.raises(StaleLease):
        farm.release(stale, fault="phone on fire")
    with pytest.raises(StaleLease), farm.writing() as session:
        queue.renew(session, stale.token, lease_s=LEASE_S, now=farm.clock())
    assert farm.jobs() == before
    farm.complete(fresh)
    assert farm.jobs() == [(operator().id, JobState.DONE, 2)]


def test_a_token_does_not_own_the_jobs_of_another_lease(farm: Farm, operator: Make) -> None:
    farm.request(operator(height=1), operator(height=2))
    mine, theirs = farm.lease("A1", max_jobs=1), farm.lease("A2", max_jobs=1)
    with pytest.raises(StaleLease):
        farm.complete(mine, theirs.jobs[0].job_id)


def test_a_late_result_counts_while_nobody_else_has_the_job(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    claim = farm.lease()
    farm.clock.advance(LEASE_S + 1)
    farm.complete(claim)
    assert farm.jobs() == [(operator().id, JobState.DONE, 1)]


def test_a_job_that_was_leased_without_a_result_is_leased_alone(farm: Farm, operator: Make) -> None:
    """One model that brings the phone down must not take its fifteen neighbours with it."""
    culprit = operator(height=1)
    farm.request(culprit, *(operator(height=h) for h in range(2, 6)))
    farm.reboot(farm.lease())
    for _ in range(MAX_ATTEMPTS * 5):
        if (claim := farm.claim()) is None:
            break
        (job,) = claim.jobs
        if job.subject_id == culprit.id:
            farm.reboot(claim)
        else:
            farm.complete(claim)
    failed = [subject for subject, state, _ in farm.jobs() if state == JobState.FAILED]
    assert failed == [culprit.id]


def test_jobs_never_tried_come_before_those_tried_in_vain(farm: Farm, operator: Make) -> None:
    farm.request(operator(height=1))
    farm.reboot(farm.lease())
    farm.request(operator(height=2), operator(height=3))
    assert [job.subject_id for job in farm.lease().jobs] == [operator(height=2).id, operator(height=3).id]
    assert [job.subject_id for job in farm.lease().jobs] == [operator(height=1).id]


def test_attempts_are_capped_and_the_reason_is_kept(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    for _ in range(MAX_ATTEMPTS):
        farm.lease()
        farm.clock.advance(LEASE_S + 1)
    assert farm.claim() is None
    assert farm.jobs() == [(operator().id, JobState.FAILED, MAX_ATTEMPTS)]
    assert farm.error() == "given up after 3 leases that ended without a result: the agent died or hung"


def test_a_lease_given_back_is_no_attempt(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    farm.release(farm.lease())
    assert farm.jobs() == [(operator().id, JobState.QUEUED, 0)]


def test_a_pulled_cable_is_no_attempt_however_often(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    for _ in range(3 * MAX_ATTEMPTS):
        farm.release(farm.lease(), fault="the phone was unplugged")
    assert farm.jobs() == [(operator().id, JobState.QUEUED, 0)]
    assert farm.error() is None


def test_a_suspect_is_returned_until_its_attempts_are_spent(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    for attempt in range(1, MAX_ATTEMPTS):
        farm.reboot(farm.lease())
        assert farm.jobs() == [(operator().id, JobState.QUEUED, attempt)]
    farm.reboot(farm.lease())
    assert farm.jobs() == [(operator().id, JobState.FAILED, MAX_ATTEMPTS)]
    assert farm.error() == "the phone rebooted"


def test_only_suspects_keep_the_attempt_that_their_lease_cost(farm: Farm, operator: Make) -> None:
    farm.request(*(operator(height=h) for h in (1, 2, 3)))
    claim = farm.lease()
    farm.release(claim, fault="the phone rebooted", suspects=[claim.jobs[1].job_id])
    assert [attempts for _, _, attempts in farm.jobs()] == [0, 1, 0]
    assert [job.subject_id for job in farm.lease().jobs] == [operator(height=1).id, operator(height=3).id]
    assert [job.subject_id for job in farm.lease().jobs] == [operator(height=2).id]


def test_an_attempt_once_spent_is_not_given_back_with_a_later_lease(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    farm.reboot(farm.lease())
    farm.release(farm.lease(), fault="the phone was unplugged")
    assert farm.jobs() == [(operator().id, JobState.QUEUED, 1)]
    assert farm.error() == "the phone rebooted"


def test_a_suspect_of_another_lease_is_refused_and_nothing_changes(farm: Farm, operator: Make) -> None:
    farm.request(operator(height=1), operator(height=2))
    mine, theirs = farm.lease("A1", max_jobs=1), farm.lease("A2", max_jobs=1)
    before = farm.jobs()
    suspects = [mine.jobs[0].job_id, theirs.jobs[0].job_id]
    with pytest.raises(StaleLease, match=f"Job {suspects[1]} is not part of this lease"):
        farm.release(mine, fault="the phone rebooted", suspects=suspects)
    assert farm.jobs() == before
    farm.complete(mine)
    farm.complete(theirs)


def test_a_suspect_that_the_lease_has_finished_stays_finished(farm: Farm, operator: Make) -> None:
    farm.request(operator(height=1), operator(height=2))
    claim = farm.lease()
    farm.complete(claim)
    farm.reboot(claim)
    assert [(state, attempts) for _, state, attempts in farm.jobs()] == [(JobState.DONE, 1), (JobState.QUEUED, 1)]


def test_a_release_leaves_finished_jobs_of_the_lease_alone(farm: Farm, operator: Make) -> None:
    farm.request(operator(height=1), operator(height=2))
    claim = farm.lease()
    farm.complete(claim)
    farm.release(claim)
    assert [state for _, state, _ in farm.jobs()] == [JobState.DONE, JobState.QUEUED]


def test_a_job_that_nobody_wants_any_more_is_cancelled(farm: Farm, operator: Make) -> None:
    kept, pruned = operator(height=1), operator(height=2)
    farm.request(kept, pruned)
    with farm.writing() as session:
        assert queue.withdraw(session, "me", subject_ids=[pruned.id], now=farm.clock()) == 1
    assert [state for _, state, _ in farm.jobs()] == [JobState.QUEUED, JobState.CANCELLED]


def test_a_job_that_somebody_else_wants_is_not_cancelled(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    farm.request(operator(), client="other")
    with farm.writing() as session:
        assert queue.withdraw(session, "me", subject_ids=None, now=farm.clock()) == 0
    with farm.writing() as session:
        assert queue.withdraw(session, "other", subject_ids=None, now=farm.clock()) == 1
    assert [state for _, state, _ in farm.jobs()] == [JobState.CANCELLED]


def test_what_a_client_once_wanted_is_forgotten_and_costs_nothing(farm: Farm, operator: Make) -> None:
    """A script may have the same name for years: nothing is locked or named of the jobs that have ended."""
    ended = [operator(height=height) for height in range(1, 17)]
    farm.request(*ended)
    claim = farm.lease()
    for job in claim.jobs:
        farm.complete(claim, job.job_id)
    farm.request(operator(height=20))
    with farm.writing() as session:
        most = list[int]()
        event.listen(session.connection(), "before_cursor_execute", lambda *seen: most.append(len(seen[3])))
        assert queue.withdraw(session, "me", subject_ids=None, now=farm.clock()) == 1
        assert max(most) < len(ended)
        assert session.scalars(select(WantRow)).all() == []


def test_clients_of_one_name_with_two_tokens_are_two(farm: Farm, operator: Make) -> None:
    farm.request(operator(), owner="ana")
    farm.request(operator(), owner="bob")
    for owner, cancelled in (("", 0), ("bob", 0), ("bob", 0), ("ana", 1)):
        with farm.writing() as session:
            assert queue.withdraw(session, "me", owner=owner, subject_ids=None, now=farm.clock()) == cancelled


@pytest.mark.parametrize(
    ("owner", "client", "full"),
    [("", "me", True), ("", "other", False), ("ana", "me", True), ("ana", "other", True), ("bob", "me", False)],
)
def test_what_a_client_waits_for_is_counted_by_token_or_without_tokens_by_name(
    farm: Farm, operator: Make, owner: str, client: str, full: bool
) -> None:
    waiting = [operator(height=height) for height in (1, 2, 3)]
    farm.request(*waiting, owner="ana")
    farm.request(*waiting)
    with farm.writing() as session, nullcontext() if not full else pytest.raises(QueueFull, match="wait for 2 meas"):
        queue.refuse_above(session, client, owner=owner, max_waiting=2)
    with farm.writing() as session:
        queue.refuse_above(session, client, owner=owner, max_waiting=3)
    farm.complete(farm.lease())
    with farm.writing() as session:
        queue.refuse_above(session, client, owner=owner, max_waiting=2)


def test_a_leased_job_is_not_cancelled(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    claim = farm.lease()
    with farm.writing() as session:
        assert queue.withdraw(session, "me", subject_ids=None, now=farm.clock()) == 0
    farm.complete(claim)


def test_a_leased_job_that_nobody_wants_is_cancelled_when_it_is_given_back(farm: Farm, operator: Make) -> None:
    farm.request(operator(height=1), operator(height=2))
    farm.request(operator(height=2), client="other")
    claim = farm.lease()
    with farm.writing() as session:
        assert queue.withdraw(session, "me", subject_ids=None, now=farm.clock()) == 0
        queue.release(session, claim.token, device_fault="unplugged", suspects=(), max_attempts=5, now=farm.clock())
    assert [state for _, state, _ in farm.jobs()] == [JobState.CANCELLED, JobState.QUEUED]


def test_a_job_whose_lease_has_run_out_is_cancelled_as_a_queued_one_is(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    claim = farm.lease()
    farm.clock.advance(3600)
    with farm.writing() as session:
        assert queue.withdraw(session, "me", subject_ids=None, now=farm.clock()) == 1
    with farm.writing() as session:  # a result that comes late is left aside, and refuses no other
        assert queue.owned_jobs(session, claim.token, [claim.jobs[0].job_id]) == {}


def test_a_cancelled_subject_can_be_asked_for_again(farm: Farm, operator: Make) -> None:
    farm.request(operator())
    with farm.writing() as session:
        queue.withdraw(session, "me", subject_ids=None, now=farm.clock())
    farm.request(operator())
    assert [state for _, state, _ in farm.jobs()] == [JobState.CANCELLED, JobState.QUEUED]


def test_jobs_of_a_subject_that_cannot_be_converted_fail(farm: Farm, operator: Make) -> None:
    farm.request(operator(), ready=False)
    with farm.writing() as session:
        queue.fail_unconvertible(session, operator().id, precision="float32", error="no such kernel", now=farm.clock())
    assert farm.jobs() == [(operator().id, JobState.FAILED, 0)]
    assert farm.error() == "no such kernel"
