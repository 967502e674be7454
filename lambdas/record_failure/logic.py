"""What a failure means, and what is to be done about its request. Pure.

A failure comes in by one of two doors:

* the state ``RecordFailure`` of the machine ``onboard``, with the error that a Catch has caught;
* the rule on "Step Functions Execution Status Change", for an execution that was stopped, that
  ran out of time as a whole, or that could not record its failure itself.

By whichever door, and how often ever, the outcome for the request is the same::

    record          missing  other owner  READY     FAILED/CANCELLED, ours  not ended, ours or free
    verdict         ─────────── NOT OURS ─────────  ENDED_BEFORE            END_NOW

A request that nobody owns is not ours either if this execution was refused the claim, or if its
input was not that request's own: an event without all fields dies at its first state, and must not
take a request with it that waits in good health.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

from limner.contracts import keys
from limner.contracts.errors import NOT_RECORDED, REGISTRY, LimnerError
from limner.contracts.statuses import TERMINAL, RequestStatus

FAILED_EVENT: Final = "limner.onboarding.failed"
# Keeps records, events and the console readable; SageMaker's own reasons end at 1,024.
MAX_MESSAGE_CHARS: Final = 1_000

# "CODE: message Fix: …", perhaps behind the "AlgorithmError: " that SageMaker puts before the
# container's words, and before the ", exit code: 1" that it puts behind them.
_OWN_WORDS: Final = re.compile(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*): (.*)", re.DOTALL)
_THROTTLING: Final = re.compile(
    r"throttl|rate exceeded|too ?many ?requests|ProvisionedThroughputExceeded"
    r"|RequestLimitExceeded|SlowDown",
    re.IGNORECASE,
)
_AWS_PREFIXES: Final = ("SageMaker.", "DynamoDB.", "DynamoDb.", "S3.", "SNS.", "Sns.", "Lambda.")
_JOB_DEADLINES: Final = frozenset({"MaxRuntimeExceeded", "MaxWaitTimeExceeded"})
_DEADLINES: Final = frozenset({"States.Timeout", "States.HeartbeatTimeout"})


class NotOursError(LimnerError):
    """The request is not this execution's to end. The machine's Retry knows this class's name."""

    def __init__(self, request_id: str) -> None:
        detail = f"Request {request_id} has another owner, or has ended already."
        super().__init__("REQUEST_ALREADY_CLAIMED", detail)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure in the words of the registry.

    Attributes:
        code: A code of the registry.
        message: What happened in this case, at most ``MAX_MESSAGE_CHARS``.
    """

    code: str
    message: str

    def to_error(self) -> dict[str, str | bool]:
        """The error as the request's record keeps it."""
        spec = REGISTRY[self.code]
        return {
            "code": self.code,
            "message": self.message,
            "retryable": spec.retryable,
            "fault": spec.fault,
            "fix": spec.fix,
        }


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution ends its request.

    Attributes:
        request_id: The request.
        owner: ARN of the execution.
        status: FAILED or CANCELLED.
        failure: Why.
        by_rule: Whether the execution is over, so that nobody else can announce the failure.
        told: The input of an execution that is over, as far as it must agree with the record of a
            request which it has not claimed; None where the machine itself has read it.
    """

    request_id: str
    owner: str
    status: RequestStatus
    failure: Failure
    by_rule: bool
    told: Mapping[str, Any] | None = None


class Verdict(Enum):
    """What is to be done about a request."""

    NOT_OURS = auto()
    ENDED_BEFORE = auto()
    END_NOW = auto()


def read_ending(event: Mapping[str, Any]) -> Ending | None:
    """Reads the event of either door.

    Args:
        event: The state's payload, or EventBridge's event.

    Returns:
        The ending; None if an execution ended that was started with no request in its input.

    Raises:
        KeyError: If the state's payload lacks a field.
    """
    if "detail-type" in event:
        return _ending_of_execution(event["detail"])
    failure = event["failure"]
    return Ending(
        request_id=event["request_id"],
        owner=event["owner"],
        status=RequestStatus.FAILED,
        failure=explain(failure.get("Error"), failure.get("Cause")),
        by_rule=False,
    )


def _ending_of_execution(detail: Mapping[str, Any]) -> Ending | None:
    try:
        told = json.loads(detail.get("input") or "{}")
        request_id = keys.check_request_id(told["request_id"])
    except (KeyError, TypeError, ValueError, LimnerError):
        return None
    status, failure = RequestStatus.FAILED, explain(detail.get("error"), detail.get("cause"))
    if detail["status"] == "ABORTED":
        stopped = REGISTRY["EXECUTION_STOPPED"]
        status = RequestStatus.CANCELLED
        failure = _failure(stopped.code, detail.get("cause") or stopped.summary)
    elif detail["status"] == "TIMED_OUT":
        failure = _failure("DEADLINE_EXCEEDED", "The onboarding as a whole ran out of time.")
    return Ending(request_id, detail["executionArn"], status, failure, by_rule=True, told=told)


def as_wished(record: Mapping[str, Any] | None, ending: Ending) -> Ending:
    """The ending as the request's client wanted it: whoever cancelled it gets no failure.

    A request that shares its execution with others is cancelled by a note in its record; the
    machine then refuses to publish it (``RecordModel``), and comes here.
    """
    if record is None or not record.get("cancel_requested"):
        return ending
    stopped = REGISTRY["EXECUTION_STOPPED"]
    failure = _failure(stopped.code, "The request was cancelled by its client.")
    return replace(ending, status=RequestStatus.CANCELLED, failure=failure)


def judge(record: Mapping[str, Any] | None, ending: Ending) -> Verdict:
    """Decides what an ending means for the request as it is recorded."""
    if record is None:
        return Verdict.NOT_OURS
    status, owner = RequestStatus(record["status"]), record.get("owner")
    if status in TERMINAL:
        ended_by_us = owner == ending.owner and status is not RequestStatus.READY
        return Verdict.ENDED_BEFORE if ended_by_us else Verdict.NOT_OURS
    if owner is None and ending.failure.code == "REQUEST_ALREADY_CLAIMED":
        # Refused the claim: its photos are still to come, or it went back to the queue.
        return Verdict.NOT_OURS
    if owner is None and ending.told is not None and not _is_input_of(record, ending.told):
        return Verdict.NOT_OURS
    # A request that nobody has claimed is ours to end: this execution failed before its claim.
    return Verdict.END_NOW if owner in (None, ending.owner) else Verdict.NOT_OURS


def _is_input_of(record: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether an execution was told what the request's own executions are told."""
    agrees = all(told.get(name) == record[name] for name in ("user_id", "model_id"))
    return agrees and {"attempt", "retrain"} <= told.keys()


def failed_body(record: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the notification: ``limner.contracts.onboarding.OnboardingFailed``."""
    return {
        "type": FAILED_EVENT,
        "schema_version": 1,
        "request_id": record["request_id"],
        "user_id": record["user_id"],
        "model_id": record["model_id"],
        **{field: error[field] for field in ("code", "message", "retryable", "fix")},
        # Errors that an older version of Limner has recorded do not say whose they are.
        "fault": error.get("fault") or REGISTRY[error["code"]].fault,
    }


def explain(error: str | None, cause: str | None) -> Failure:
    """Maps an error of Step Functions to the registry.

    Args:
        error: Error name, such as ``States.TaskFailed`` or ``SageMaker.AmazonSageMakerException``,
            ``NOT_RECORDED``, the name of a Lambda function's exception class, or a code of the
            registry.
        cause: Its cause: plain text, the JSON of a failed training job, or the JSON of a Lambda
            function's error.

    Returns:
        The failure. A known code that one of our own programs has put in front of its words wins
        over everything else.
    """
    error, cause = error or "", cause or ""
    if error == NOT_RECORDED:
        first = _json_object(cause)
        return explain(str(first.get("Error", "")), str(first.get("Cause", "")))
    if error in REGISTRY:
        return _failure(error, cause or REGISTRY[error].summary)
    document = _json_object(cause)
    words = str(document.get("FailureReason") or document.get("errorMessage") or "")
    if own := _own_words(words or cause):
        return own
    if "TrainingJobStatus" in document:
        return _explain_job(document, words)
    return _explain_call(error, words or cause)


def _explain_job(job: Mapping[str, Any], reason: str) -> Failure:
    if reason.startswith("CapacityError"):
        return _failure("NO_CAPACITY", reason)
    if job.get("SecondaryStatus") in _JOB_DEADLINES:
        return _failure("DEADLINE_EXCEEDED", reason or "The training job ran out of time.")
    if job["TrainingJobStatus"] == "Stopped":
        return _failure("TRAINING_STOPPED", reason or REGISTRY["TRAINING_STOPPED"].summary)
    return _failure("TRAINING_FAILED", reason or "The training job failed without a reason.")


def _explain_call(error: str, words: str) -> Failure:
    told = f"{error}: {words}" if words else error
    if error in _DEADLINES:
        return _failure("DEADLINE_EXCEEDED", "A step took longer than its deadline allows.")
    if "ResourceLimitExceeded" in told:
        return _failure("QUOTA_EXCEEDED", told)
    if _THROTTLING.search(told):
        return _failure("THROTTLED", told)
    if "ConditionalCheckFailed" in told:
        return _failure("REQUEST_ALREADY_CLAIMED", "The request changed hands.")
    if error.startswith(_AWS_PREFIXES):
        return _failure("AWS_ERROR", told)
    if error.startswith("States."):
        # Step Functions quotes the state's input here, and with it the user's own text.
        return _failure("INTERNAL", f"{error}: the execution's history says more.")
    return _failure("INTERNAL", told or "The execution ended without telling why.")


def _own_words(words: str) -> Failure | None:
    """The code and message that one of our own programs wrote, if it did."""
    start = 0
    while match := _OWN_WORDS.search(words, start):
        code, rest = match.groups()
        if code in REGISTRY:
            return _failure(code, rest.partition(" Fix: ")[0])
        start = match.end(1)
    return None


def _failure(code: str, message: str) -> Failure:
    return Failure(code, message.strip()[:MAX_MESSAGE_CHARS])


def _json_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
