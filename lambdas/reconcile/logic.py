"""What is wrong with a request that stands still, and what is done about it. Pure.

::

    REGISTERED  for a day                              EXPIRE_UPLOAD  FAILED
    QUEUED      in no queue, no execution runs         ENQUEUE        its turn comes
                the same, its execution is over        ENQUEUE_NEXT   with the next attempt
                too many attempts, or cancelled        GIVE_UP        FAILED | CANCELLED
                in the queue, a lease is over          CLEAR_LEASE
                in the queue for a week                OVERDUE        FAILED
    owned       the owner is over, and was a batch     REQUEUE        or GIVE_UP
                the same, but cancelled meanwhile      END            CANCELLED
                the owner is over                      END            as the owner ended
                the owner runs, its job is long over   STOP           the rule ends the request
    ended       still in the index                     FINISH         released, announced, out of it
                (READY too: ActivateModel leaves it there until the app was told)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any, Final

from lambdas.record_failure.logic import Ending, read_ending
from lambdas.shared.clock import to_ms
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import TERMINAL, RequestStatus

# The same as in workflows.retries and dispatch; tests compare.
MAX_ATTEMPTS: Final = 3
# Jobs of one execution: one for each type of machine (workflows.retries.MOST_INSTANCE_TYPES).
MOST_JOBS: Final = 5
# Forms end after a quarter of an hour (register.logic.FORM_S), and registering again gives fresh
# ones; whoever comes back after a day makes a new request.
UPLOAD_S: Final = 24 * 3600
QUEUE_S: Final = 7 * 24 * 3600
# No execution lives so long (workflows.retries.MACHINE_TIMEOUT_S).
OWNED_S: Final = 10 * 24 * 3600
# Longer than the retries of any call between two writes of the status: throttled calls for a job
# take 48 minutes at most.
JOB_GRACE_S: Final = 6 * 3600

Record = Mapping[str, Any]


class Action(Enum):
    """What is done about a request."""

    NONE = auto()
    EXPIRE_UPLOAD = auto()
    ENQUEUE = auto()
    ENQUEUE_NEXT = auto()
    CLEAR_LEASE = auto()
    GIVE_UP = auto()
    OVERDUE = auto()
    REQUEUE = auto()
    END = auto()
    STOP = auto()
    FINISH = auto()


class Run(Enum):
    """What became of an execution."""

    RUNNING = auto()
    OVER = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Facts:
    """What AWS says about a request's execution and job.

    Attributes:
        run: The owner's execution; for a request without owner, the one of its name.
        is_batch: Whether the owner is an execution of batches.
        job: DescribeTrainingJob's answer, where it was asked for; None if there is no such job.
    """

    run: Run = Run.ABSENT
    is_batch: bool = False
    job: Mapping[str, Any] | None = None


def awaited_execution(record: Record) -> str:
    """Name of the execution that ought to take a QUEUED request on."""
    return keys.execution_name(record["request_id"], record.get("attempt", 1))


def still_s(record: Record, now_ms: int) -> int:
    """Seconds since the last change of the status."""
    return (now_ms - to_ms(record["updated_at"])) // 1000


def judge(record: Record, facts: Facts, now_ms: int) -> Action:
    """What is done about a request that stands still.

    Args:
        record: Its row.
        facts: What AWS says.
        now_ms: Milliseconds since 1970.
    """
    status = RequestStatus(record["status"])
    if status in TERMINAL:
        return Action.FINISH
    if "owner" in record:
        return _judge_owned(record, status, facts, now_ms)
    if status is RequestStatus.REGISTERED:
        return Action.EXPIRE_UPLOAD if still_s(record, now_ms) > UPLOAD_S else Action.NONE
    if status is RequestStatus.QUEUED:
        return _judge_queued(record, facts, now_ms)
    return Action.OVERDUE  # at work, but nobody's: no execution can go on with it


def settle(record: Record, *, is_batch: bool) -> Action:
    """What is done about a request whose owner is over."""
    status = RequestStatus(record["status"])
    if record.get("cancel_requested"):
        return Action.END
    if is_batch and status in (RequestStatus.TRAINING, RequestStatus.WAITING_FOR_CAPACITY):
        return Action.REQUEUE if record.get("attempt", 1) < MAX_ATTEMPTS else Action.GIVE_UP
    return Action.END


def _judge_owned(record: Record, status: RequestStatus, facts: Facts, now_ms: int) -> Action:
    if facts.run is not Run.RUNNING:
        return settle(record, is_batch=facts.is_batch)
    still = still_s(record, now_ms)
    if still > OWNED_S:
        return Action.STOP
    if status is RequestStatus.TRAINING and still > JOB_GRACE_S and "job_name" in record:
        return Action.STOP if _is_long_over(facts.job, now_ms) else Action.NONE
    return Action.NONE


def _judge_queued(record: Record, facts: Facts, now_ms: int) -> Action:
    if record.get("spent") or record.get("cancel_requested"):
        return Action.GIVE_UP
    if "queue" in record:
        if now_ms - to_ms(record["queued_at"]) > QUEUE_S * 1000:
            return Action.OVERDUE
        lease_until = record.get("lease_until")
        return Action.CLEAR_LEASE if lease_until and to_ms(lease_until) < now_ms else Action.NONE
    match facts.run:
        case Run.RUNNING:
            return Action.NONE
        case Run.ABSENT:
            return Action.ENQUEUE
        case Run.OVER:
            again = record.get("attempt", 1) < MAX_ATTEMPTS
            return Action.ENQUEUE_NEXT if again else Action.GIVE_UP


def is_at_work(job: Mapping[str, Any] | None) -> bool:
    """Whether a training job costs money now."""
    return job is not None and job["TrainingJobStatus"] == "InProgress"


def _is_long_over(job: Mapping[str, Any] | None, now_ms: int) -> bool:
    if job is None:
        return True
    if job["TrainingJobStatus"] in ("InProgress", "Stopping"):
        return False
    ended: datetime | None = job.get("TrainingEndTime") or job.get("LastModifiedTime")
    return ended is None or now_ms - ended.timestamp() * 1000 > JOB_GRACE_S * 1000


def ending_of(record: Record, execution: Mapping[str, Any] | None) -> Ending:
    """How an owner that is over ends its request, in the words of ``record_failure``.

    Args:
        record: The request's row.
        execution: DescribeExecution's answer; None if nothing is known any more.
    """
    known = execution or {"executionArn": record["owner"], "status": "TIMED_OUT"}
    detail = {**known, "input": json.dumps({"request_id": record["request_id"]})}
    ending = read_ending({"detail-type": "reconcile", "detail": detail})
    if ending is None:
        raise LimnerError("INTERNAL", "The row's request id has no request's form.")
    return ending


def requests_of(document: str | None) -> tuple[str, ...]:
    """The requests in the input of an execution of either machine; bad ones are left out."""
    try:
        told = json.loads(document or "{}")
        batch = told.get("requests", [told])
        ids = [entry.get("request_id") for entry in batch]
    except (ValueError, AttributeError, TypeError):
        return ()
    return tuple(found for found in ids if _is_request_id(found))


def jobs_of(document: str | None) -> Iterator[str]:
    """Names that the jobs of an execution of batches have, one attempt after the other."""
    try:
        told = json.loads(document or "{}")
        first, batch_id = int(told.get("attempt", 1)), keys.check_request_id(told["batch_id"])
    except (ValueError, AttributeError, TypeError, KeyError, LimnerError):
        return
    for attempt in range(first, first + MOST_JOBS):
        yield keys.batch_job_name(batch_id, attempt)


def _is_request_id(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(keys.check_request_id(value))
    except LimnerError:
        return False
