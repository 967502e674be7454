"""Folds an execution's history into what is drawn: pure, and the same for every run.

Two dialects are read. AWS writes an event per step of an attempt (TaskScheduled, TaskStarted,
TaskSubmitted, then TaskSucceeded, TaskFailed or TaskTimedOut) and links events by
``previousEventId``. The laptop's Step Functions writes fewer, links none of them, calls a timeout a
TaskFailed, and may go on writing for a moment after an execution was stopped.
Event names: GetExecutionHistory in the Step Functions API reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from limner.graph.machine import END, START

#: Longest cause that is drawn, in characters; the rest is cut off with an ellipsis.
MAX_CAUSE_CHARS: Final = 240


class Outcome(StrEnum):
    """What became of a state in one execution."""

    NOT_REACHED = "not reached"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CAUGHT = "caught error"
    FAILED = "failed"
    ABORTED = "aborted"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class StateRun:
    """What one state did.

    Attributes:
        name: The state's name.
        outcome: How its last entry ended.
        entries: How often it was entered; more than 1 in a loop.
        duration_s: Time in the state over all entries, in seconds; None when it is not known.
        retries: Failed attempts that were followed by another one, over all entries.
        error: Name of the last error, or None. A state that succeeded after retries has one.
        cause: That error's cause in one short line, or None.
    """

    name: str
    outcome: Outcome = Outcome.NOT_REACHED
    entries: int = 0
    duration_s: float | None = None
    retries: int = 0
    error: str | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """One execution, ready to be drawn.

    Attributes:
        machine: The state machine's name.
        execution: The execution's name.
        status: Status of the execution, as in DescribeExecution.
        started_at: When it started, in UTC; None when it is not known.
        duration_s: From its start to its end (or to now while it runs), in seconds, or None.
        error: The execution's error, or None.
        cause: That error's cause in one short line, or None.
        states: One entry per state, in the order of the definition.
        taken: The transitions that were made, as pairs of state names (or `START`, `END`).
    """

    machine: str
    execution: str
    status: str
    started_at: datetime | None
    duration_s: float | None
    error: str | None
    cause: str | None
    states: Mapping[str, StateRun]
    taken: frozenset[tuple[str, str]]


_STATUS_OF_END: Final = {
    "ExecutionSucceeded": "SUCCEEDED",
    "ExecutionFailed": "FAILED",
    "ExecutionAborted": "ABORTED",
    "ExecutionTimedOut": "TIMED_OUT",
}
_ATTEMPT_FAILED: Final = frozenset(
    {
        "ActivityFailed",
        "ActivityScheduleFailed",
        "EvaluationFailed",
        "LambdaFunctionFailed",
        "LambdaFunctionScheduleFailed",
        "LambdaFunctionStartFailed",
        "MapStateFailed",
        "ParallelStateFailed",
        "TaskFailed",
        "TaskStartFailed",
        "TaskSubmitFailed",
    }
)
_ATTEMPT_TIMED_OUT: Final = frozenset(
    {"ActivityTimedOut", "LambdaFunctionTimedOut", "TaskTimedOut"}
)
_ATTEMPT_SUCCEEDED: Final = frozenset(
    {
        "ActivitySucceeded",
        "LambdaFunctionSucceeded",
        "MapStateSucceeded",
        "ParallelStateSucceeded",
        "TaskSucceeded",
    }
)
_UNFINISHED: Final = {
    "RUNNING": Outcome.RUNNING,
    "PENDING_REDRIVE": Outcome.RUNNING,
    "SUCCEEDED": Outcome.SUCCEEDED,
    "FAILED": Outcome.FAILED,
    "ABORTED": Outcome.ABORTED,
    "TIMED_OUT": Outcome.TIMED_OUT,
}


@dataclass(slots=True)
class _Tally:
    """What is known of one state so far; `entered_at` is set while the state is open."""

    outcome: Outcome = Outcome.NOT_REACHED
    entries: int = 0
    seconds: float = 0.0
    timed: bool = True
    retries: int = 0
    failed_attempts: int = 0
    attempt_failed: bool = False
    timed_out: bool = False
    error: str | None = None
    cause: str | None = None
    open: bool = False
    entered_at: datetime | None = None

    def enter(self, at: datetime | None) -> None:
        self.entries += 1
        self.open, self.entered_at = True, at
        self.failed_attempts = 0
        self.attempt_failed = self.timed_out = False

    def fail(self, error: str | None, cause: str | None, *, timed_out: bool) -> None:
        self.failed_attempts += 1
        self.attempt_failed, self.timed_out = True, timed_out
        self.error, self.cause = error, cause

    def close(self, at: datetime | None, outcome: Outcome) -> None:
        ended_by_error = outcome in (Outcome.CAUGHT, Outcome.FAILED, Outcome.TIMED_OUT)
        final = 1 if ended_by_error and self.attempt_failed else 0
        self.retries += self.failed_attempts - final
        if at is None or self.entered_at is None:
            self.timed = False
        else:
            self.seconds += max(0.0, (at - self.entered_at).total_seconds())
        self.outcome, self.open = outcome, False

    def leave(self, at: datetime | None) -> None:
        self.close(at, Outcome.CAUGHT if self.attempt_failed else Outcome.SUCCEEDED)

    def freeze(self, name: str) -> StateRun:
        known = self.entries > 0 and self.timed
        return StateRun(
            name,
            self.outcome,
            self.entries,
            self.seconds if known else None,
            self.retries,
            self.error,
            self.cause,
        )


class _Fold:
    """Walks the events in order and keeps one tally per state of the top level.

    States inside a Parallel or Map are followed, so that their attempts are not taken for the
    outer state's, and then forgotten.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.tallies = {name: _Tally() for name in names}
        self.taken: set[tuple[str, str]] = set()
        self.end: Mapping[str, Any] | None = None
        self._owners: dict[int, str] = {}
        self._innermost: str | None = None
        self._previous = START

    def add(self, event: Mapping[str, Any]) -> None:
        kind: str = event["type"]
        if kind == "ExecutionRedriven":
            self.end = None
        elif self.end is not None or kind == "ExecutionStarted":
            return
        elif kind in _STATUS_OF_END:
            self.end = event
        else:
            self._step(kind, event)

    def _step(self, kind: str, event: Mapping[str, Any]) -> None:
        at = as_datetime(event.get("timestamp"))
        name = self._owners.get(event.get("previousEventId", 0), self._innermost)
        if kind.endswith("StateEntered"):
            name = str(event["stateEnteredEventDetails"]["name"])
            self._enter(name, at)
        elif kind.endswith("StateExited"):
            name = str(event["stateExitedEventDetails"]["name"])
            if name in self.tallies and self.tallies[name].open:
                self.tallies[name].leave(at)
        elif name in self.tallies:
            self._attempt(kind, event, self.tallies[name])
        if name is not None:
            self._owners[event["id"]] = name

    def _enter(self, name: str, at: datetime | None) -> None:
        self._innermost = name
        if name not in self.tallies:
            return
        if self._previous in self.tallies and self.tallies[self._previous].open:
            # The history lacks the exit: a state of the top level ends where the next begins.
            self.tallies[self._previous].leave(at)
        self.taken.add((self._previous, name))
        self._previous = name
        self.tallies[name].enter(at)

    @staticmethod
    def _attempt(kind: str, event: Mapping[str, Any], tally: _Tally) -> None:
        if kind in _ATTEMPT_SUCCEEDED:
            tally.attempt_failed = False
        elif kind in _ATTEMPT_FAILED or kind in _ATTEMPT_TIMED_OUT:
            error, cause = _error_of(event)
            if error is None and kind in _ATTEMPT_TIMED_OUT:
                error = "States.Timeout"
            late = kind in _ATTEMPT_TIMED_OUT or error == "States.Timeout"
            tally.fail(error, cause, timed_out=late)

    def finish(
        self, status: str, at: datetime | None, error: str | None, cause: str | None
    ) -> None:
        """Closes the state that was open when the history ended."""
        for name, tally in self.tallies.items():
            if tally.open:
                outcome = _UNFINISHED.get(status, Outcome.RUNNING)
                if outcome is Outcome.FAILED and tally.attempt_failed and tally.timed_out:
                    outcome = Outcome.TIMED_OUT
                if outcome is not Outcome.RUNNING and error is not None:
                    tally.error, tally.cause = error, cause
                tally.close(at, outcome)
            if status == "SUCCEEDED" and name == self._previous:
                self.taken.add((name, END))


def fold(
    definition: Mapping[str, Any],
    execution: Mapping[str, Any],
    events: Iterable[Mapping[str, Any]],
    *,
    now: datetime | None = None,
) -> Drawing:
    """Folds a history.

    Args:
        definition: The state machine's definition, as parsed JSON.
        execution: The answer of DescribeExecution. Times may be datetimes, seconds since 1970
            or ISO 8601 text.
        events: All events of GetExecutionHistory, in any order.
        now: The time until which a running execution is measured; without it the durations of
            what still runs are unknown.

    Returns:
        The drawing's content. The history's own end goes before the status of `execution`,
        because the description may be older than the history.
    """
    walk = _Fold(definition["States"])
    started_at = as_datetime(execution.get("startDate"))
    for event in sorted(events, key=lambda one: int(one["id"])):
        walk.add(event)
    status = str(execution.get("status", "RUNNING"))
    stopped_at = as_datetime(execution.get("stopDate"))
    error, cause = _tidy(execution.get("error"), execution.get("cause"))
    if walk.end is not None:
        status = _STATUS_OF_END[walk.end["type"]]
        stopped_at = as_datetime(walk.end.get("timestamp")) or stopped_at
        own_error, own_cause = _error_of(walk.end)
        error, cause = own_error or error, own_cause or cause
    if _UNFINISHED.get(status) is Outcome.RUNNING:
        stopped_at = now
    walk.finish(status, stopped_at, error, cause)
    return Drawing(
        machine=str(execution.get("stateMachineArn", "")).rpartition(":")[2],
        execution=str(execution.get("name", "")),
        status=status,
        started_at=started_at,
        duration_s=(
            max(0.0, (stopped_at - started_at).total_seconds())
            if started_at is not None and stopped_at is not None
            else None
        ),
        error=error,
        cause=cause,
        states={name: tally.freeze(name) for name, tally in walk.tallies.items()},
        taken=frozenset(walk.taken),
    )


def as_datetime(value: object) -> datetime | None:
    """Reads a time as the SDK (datetime), the wire (seconds since 1970) or text (ISO) gives it.

    Args:
        value: The time; None and any other type mean that it is not known.

    Returns:
        The time in UTC, or None.

    Raises:
        ValueError: A text is not an ISO 8601 time.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, int | float):
        value = datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _error_of(event: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Error and short cause of an event, whose details have a key of the event's own name."""
    for key, details in event.items():
        if key.endswith("EventDetails") and isinstance(details, Mapping):
            return _tidy(details.get("error"), details.get("cause"))
    return None, None


def _tidy(error: object, cause: object) -> tuple[str | None, str | None]:
    name = str(error) if error else None
    return name, short_cause(str(cause)) if cause else None


_SERVICE_TAIL: Final = re.compile(r"\s*\(Service: [^()]*\)\s*$")
_ERROR_CODE: Final = re.compile(r"Error Code: ([\w.]+)")
_MESSAGE_KEYS: Final = ("FailureReason", "errorMessage", "message", "Message", "cause", "Cause")


def short_cause(cause: str) -> str:
    """The part of a cause that a person reads, in one line of at most `MAX_CAUSE_CHARS`.

    A failed job's cause is its description as JSON (FailureReason counts), a Lambda's is an
    object with errorMessage, and a service's ends in "(Service: ...; Error Code: ...;
    Request ID: ...)", of which the code is kept.

    Args:
        cause: The cause as the event has it.

    Returns:
        One line of text; "" when nothing is left.
    """
    text = cause
    try:
        parsed = json.loads(cause)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        found = (parsed[key] for key in _MESSAGE_KEYS if isinstance(parsed.get(key), str))
        text = next(found, cause)
    tail = _SERVICE_TAIL.search(text)
    if tail is not None:
        code = _ERROR_CODE.search(tail[0])
        text = text[: tail.start()]
        if code is not None:
            text = f"{code[1]}: {text}"
    text = " ".join(text.split())
    return text if len(text) <= MAX_CAUSE_CHARS else text[: MAX_CAUSE_CHARS - 1].rstrip() + "…"
