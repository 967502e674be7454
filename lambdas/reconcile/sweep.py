"""A run of reconcile: what was owed, who stands still, and who holds a place for nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import ClientError

from lambdas.dispatch.gate import Holder, release
from lambdas.dispatch.gate_row import GateRow
from lambdas.reconcile import logic
from lambdas.reconcile.jobs import Jobs
from lambdas.reconcile.logic import Action, Facts, Record, Run
from lambdas.reconcile.notes import Notes
from lambdas.reconcile.repairs import Repairs
from lambdas.shared.clock import Clock, iso
from lambdas.shared.dynamo import Table
from lambdas.shared.executions import Executions, is_running
from lambdas.shared.log import log_event
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import TERMINAL, RequestStatus

INDEX: Final = "open"
# A run looks at so many requests of a shard; the next run goes on behind them.
ROWS_PER_SHARD: Final = 100
SPARE_MS: Final = 10_000
# One row that AWS refuses is passed over; so many mean that AWS is away.
_MOST_FAILURES: Final = 5


@dataclass
class Tally:
    """What a run has found.

    Attributes:
        seen: Requests looked at.
        stuck: Requests that nobody was going to end.
        repaired: Those of them that were moved on.
        jobs_stopped: Training jobs without an execution.
        places_freed: Holders of the gate without an execution.
        failures: Requests and places whose repair was refused.
    """

    seen: int = 0
    stuck: int = 0
    repaired: int = 0
    jobs_stopped: int = 0
    places_freed: int = 0
    failures: int = 0


class Sweep:
    """One run.

    Args:
        requests: Table of requests.
        notes: What is remembered.
        repairs: What can be done.
        executions: Step Functions.
        jobs: SageMaker.
        gate_row: The gate.
        grace_s: How long a request may stand still.
        clock: The invocation's clock.
        log: The function's log.
    """

    def __init__(
        self,
        *,
        requests: Table,
        notes: Notes,
        repairs: Repairs,
        executions: Executions,
        jobs: Jobs,
        gate_row: GateRow,
        grace_s: int,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._requests = requests
        self._notes = notes
        self._repairs = repairs
        self._executions = executions
        self._jobs = jobs
        self._gate_row = gate_row
        self._grace_s = grace_s
        self._clock = clock
        self._log = log
        self.tally = Tally()
        # Requests of a batch share their execution and their job: asked for once a run.
        self._known_executions: dict[str, Mapping[str, Any] | None] = {}
        self._stopped_jobs: set[str] = set()

    # -- On schedule ------------------------------------------------------------------------------

    def run(self) -> Tally:
        """Looks through everything, as far as this run gets.

        Raises:
            ClientError: If AWS refuses again and again.
        """
        cursors, owed = self._notes.read(self._clock.now_ms())
        for entry in owed:
            self._guard(entry, self._repairs.pay)
        self._free_places()
        before = iso(self._clock.now_ms() - self._grace_s * 1000)
        for shard in map(str, range(keys.SHARDS)):
            if self._clock.remaining_ms() < SPARE_MS:
                break
            at = cursors.pop(shard, None)
            rows, last = self._requests.page(
                INDEX,
                "#open = :shard AND #updated_at < :before",
                {":shard": shard, ":before": before},
                limit=ROWS_PER_SHARD,
                start=at,
            )
            for row in rows:
                if self._clock.remaining_ms() < SPARE_MS:
                    last = at
                    break
                self.tally.seen += 1
                self._guard(row["request_id"], self._look_at)
                at = {name: row[name] for name in ("request_id", "open", "updated_at")}
            if last is not None:
                cursors[shard] = last
        self._notes.save(cursors)
        return self.tally

    def _guard(self, name: str, repair: Callable[[str], None]) -> None:
        """One request or place that cannot be repaired does not keep the others from it."""
        try:
            repair(name)
        except (KeyError, TypeError, ValueError, LimnerError) as error:
            # A row that no program of ours has written; a person has to look at it.
            self._fail(name, type(error).__name__)
        except ClientError as error:
            self._fail(name, error.response["Error"]["Code"])
            if self.tally.failures >= _MOST_FAILURES:
                raise

    def _look_at(self, request_id: str) -> None:
        record = self._repairs.read(request_id)
        if record is None:
            return
        execution = self._execution_of(record)
        facts = self._facts(record, execution)
        self._act(logic.judge(record, facts, self._clock.now_ms()), record, execution)

    def _fail(self, name: str, code: str) -> None:
        self.tally.failures += 1
        log_event(self._log, "not repaired", name=name, code=code)

    # -- On the end of an execution ---------------------------------------------------------------

    def execution_ended(self, detail: Mapping[str, Any]) -> Tally:
        """Settles the requests of an execution that is over, without any grace.

        A batch's requests are moved on. A single one is ``record_failure``'s to end, unless it is
        READY and nobody was told. Training jobs are stopped that have outlived their execution,
        those of workers, which own no request, too.

        Args:
            detail: Of the event "Step Functions Execution Status Change".
        """
        arn = detail["executionArn"]
        self._known_executions[arn] = detail
        is_batch = self._executions.machines.is_batch(arn)
        for request_id in logic.requests_of(detail.get("input")):
            record = self._repairs.read(request_id)
            if record is None or record.get("owner") != arn:
                continue
            self.tally.seen += 1
            status = RequestStatus(record["status"])
            if status in TERMINAL or not is_batch:
                self._stop_job(record)
                # The machine may have come to record it, and not to tell it.
                if is_batch or status is RequestStatus.READY:
                    self._repairs.finish(request_id)
            else:
                self._act(logic.settle(record, is_batch=True), record, detail)
        if is_batch or self._executions.machines.is_worker(arn):
            self._stop_jobs_of(detail)
        return self.tally

    def _stop_jobs_of(self, detail: Mapping[str, Any]) -> None:
        """Jobs that a batch or a worker could not stop; others may have its requests by now."""
        for name in logic.jobs_of(detail.get("input")):
            job = self._jobs.describe(name)
            if job is None:
                return
            self._stop(name, job)

    # -- What was found ---------------------------------------------------------------------------

    def _execution_of(self, record: Record) -> Mapping[str, Any] | None:
        if "owner" in record:
            arn = record["owner"]
            if not self._executions.machines.owns(arn):
                return None
        elif record["status"] == RequestStatus.QUEUED and "queue" not in record:
            name = logic.awaited_execution(record)
            arn = self._executions.machines.execution(name, batch=False)
        else:
            return None
        if arn not in self._known_executions:
            self._known_executions[arn] = self._executions.describe(arn)
        return self._known_executions[arn]

    def _facts(self, record: Record, execution: Mapping[str, Any] | None) -> Facts:
        run = Run.ABSENT if execution is None else Run.OVER
        if is_running(execution):
            run = Run.RUNNING
        is_batch = self._executions.machines.is_batch(record.get("owner", ""))
        asks = (
            run is Run.RUNNING
            and "job_name" in record
            and logic.still_s(record, self._clock.now_ms()) > logic.JOB_GRACE_S
        )
        return Facts(run, is_batch, self._jobs.describe(record["job_name"]) if asks else None)

    def _act(self, action: Action, record: Record, execution: Mapping[str, Any] | None) -> None:
        if action is Action.NONE:
            return
        if action not in (Action.CLEAR_LEASE, Action.FINISH):
            self.tally.stuck += 1
        if action in (Action.END, Action.REQUEUE, Action.GIVE_UP):
            self._stop_job(record)
        done = self._repair(action, record, execution)
        if action not in (Action.CLEAR_LEASE, Action.FINISH):
            self.tally.repaired += done
        log_event(self._log, action.name, request_id=record["request_id"], done=done)

    def _repair(self, action: Action, record: Record, execution: Mapping[str, Any] | None) -> bool:
        match action:
            case Action.ENQUEUE | Action.ENQUEUE_NEXT:
                next_attempt = action is Action.ENQUEUE_NEXT
                return self._repairs.enqueue(record, next_attempt=next_attempt)
            case Action.CLEAR_LEASE:
                return self._repairs.clear_lease(record)
            case Action.REQUEUE:
                return self._repairs.requeue(record)
            case Action.END:
                return self._repairs.end(record, logic.ending_of(record, execution))
            case Action.STOP:
                words = "The execution waited for a training job that is not at work."
                self._executions.stop(record["owner"], "DEADLINE_EXCEEDED", words)
                return True
            case Action.FINISH:
                self._repairs.finish(record["request_id"])
                return True
            case _:
                return self._repairs.fail(record, *_WORDS[action])

    def _stop_job(self, record: Record) -> None:
        """A job whose execution is over is paid for, and nobody takes its artifact."""
        name = record.get("job_name", "")
        if not name or name in self._stopped_jobs:
            return
        self._stopped_jobs.add(name)
        self._stop(name, self._jobs.describe(name))

    def _stop(self, name: str, job: Mapping[str, Any] | None) -> None:
        if logic.is_at_work(job) and self._jobs.stop(name):
            self.tally.jobs_stopped += 1
            log_event(self._log, "job stopped", job=name)

    def _free_places(self) -> None:
        holders = self._gate_row.read().holders
        for name in holders:
            self._guard(name, lambda name: self._free_place(name, holders[name]))

    def _free_place(self, name: str, holder: Holder) -> None:
        now_s = self._clock.now_ms() // 1000
        if now_s < holder.until_s and self._may_hold(name, holder, now_s):
            return
        self._gate_row.change(lambda gate: release(gate, name))
        self.tally.places_freed += 1
        log_event(self._log, "place freed", execution=name)

    def _may_hold(self, name: str, holder: Holder, now_s: int) -> bool:
        arn = self._executions.machines.execution(name, batch=holder.batch)
        execution = self._executions.describe(arn)
        if execution is None:  # it is about to start, or its dispatcher died before
            return now_s - holder.since_s < self._grace_s
        return is_running(execution)


_WORDS: Final = {
    Action.EXPIRE_UPLOAD: ("UPLOAD_EXPIRED", "The photos did not come within a day."),
    Action.GIVE_UP: ("JOB_INCOMPLETE", "Three attempts ended without this request's part."),
    Action.OVERDUE: ("DEADLINE_EXCEEDED", "Nothing took the request on in time."),
}
