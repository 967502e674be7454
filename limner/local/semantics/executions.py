"""The life of an execution: started once, ended once, and nothing of it runs on after its end."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from limner.local.clock import Clock
from limner.local.json_types import Json
from limner.local.seams import Module

MAX_INPUT_BYTES = 262_144


@dataclass
class Scope:
    """The execution that a thread works for, and whether that work is still wanted.

    Attributes:
        execution: ministack's record of the execution.
        outer: The scope that this one is a part of.
        expired: Set when the task that runs now has exceeded its TimeoutSeconds, or when another
            branch of the same Parallel or Map has failed.
    """

    execution: dict[str, Any]
    outer: Scope | None = None
    expired: threading.Event = field(default_factory=threading.Event)

    def ended(self) -> bool:
        """Whether nobody waits for this work any more."""
        return (
            self.expired.is_set()
            or self.execution["status"] != "RUNNING"
            or (self.outer is not None and self.outer.ended())
        )


_current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("execution", default=None)
# The event that the next one of this thread follows; a branch begins with that of its parent.
_previous: contextvars.ContextVar[int] = contextvars.ContextVar("previous-event", default=0)


def current_scope() -> Scope | None:
    """The scope of the calling thread; None outside of executions."""
    return _current.get()


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """Makes a scope the current one."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


def unless_ended(engine: Module) -> None:
    """Leaves the thread if its execution, or the branch that it walks, has ended.

    AWS: StopExecution "stops the execution"; no further state is entered.
    """
    scope = current_scope()
    if scope is not None and scope.ended():
        raise engine._ExecutionError("Limner.ExecutionEnded", scope.execution["status"])


def install(engine: Module, clock: Clock) -> None:
    """Installs the corrections of this module."""
    engine._run_execution = _with_scope_and_timeout(engine, clock)
    engine._start_execution = _idempotent(engine)
    engine._fail_execution = _once(engine)
    engine._add_event = _until_the_end(engine)
    engine._scaled_sleep = _interruptible(engine, clock)


def _with_scope_and_timeout(engine: Module, clock: Clock) -> Callable[[str], None]:
    """The machine's TimeoutSeconds ends the execution.

    Amazon States Language: "If the execution runs longer than the specified value, the execution
    fails with a States.Timeout Error Name"; DescribeExecution then says TIMED_OUT.
    """
    run = engine._run_execution

    def run_execution(arn: str) -> None:
        execution = engine._executions.get(arn)
        machine = execution and engine._state_machines.get(execution["stateMachineArn"])
        if not machine:
            run(arn)
            return
        over = threading.Event()
        seconds = _timeout_of(machine["definition"])
        if seconds is not None:
            watch = contextvars.copy_context().run
            threading.Thread(
                target=watch,
                args=(_watch_timeout, engine, clock, execution, seconds, over),
                name="execution-timeout",
                daemon=True,
            ).start()
        try:
            _previous.set(0)
            with entered(Scope(execution)):
                run(arn)
        finally:
            over.set()

    return run_execution


def _timeout_of(definition: str) -> float | None:
    try:
        seconds = json.loads(definition).get("TimeoutSeconds")
    except (json.JSONDecodeError, AttributeError):
        return None  # the engine itself fails the execution with InvalidDefinition
    return float(seconds) if isinstance(seconds, int | float) else None


def _watch_timeout(
    engine: Module,
    clock: Clock,
    execution: dict[str, Any],
    seconds: float,
    over: threading.Event,
) -> None:
    deadline = clock.deadline(seconds)
    while not deadline.passed():
        if over.wait(min(0.05 + seconds * clock.timeouts / 100, 1.0)):
            return
    if execution["status"] != "RUNNING":
        return
    execution.update(status="TIMED_OUT", stopDate=engine.now_iso())
    engine._add_event(execution, "ExecutionTimedOut", {"executionTimedOutEventDetails": {}})
    engine._emit_execution_status_event(execution)


def _idempotent(engine: Module) -> Callable[[dict[str, Any]], Any]:
    """The same name and input give the same, still running execution.

    Step Functions API reference, StartExecution: "If StartExecution is called with the same name
    and input as a running execution, the call succeeds and return the same response as the
    original request. If the execution is closed or if the input is different, it returns a 400
    ExecutionAlreadyExists error."
    """
    start = engine._start_execution

    def start_execution(data: dict[str, Any]) -> Json:
        if len(str(data.get("input", "")).encode()) > MAX_INPUT_BYTES:
            return engine.error_response_json(
                "ValidationException",
                "1 validation error detected: Value at 'input' failed to satisfy constraint: "
                f"Member must have length less than or equal to {MAX_INPUT_BYTES}",
                400,
            )
        machine_arn = engine._resolve_state_machine_arn(
            str(data.get("stateMachineArn", "")).split("#")[0]
        )
        name = data.get("name")
        if machine_arn and name:
            arn = (
                f"arn:aws:states:{engine.get_region()}:{engine.get_account_id()}:execution:"
                f"{engine._state_machines[machine_arn]['name']}:{name}"
            )
            running = engine._executions.get(arn)
            if (
                running
                and running["status"] == "RUNNING"
                and running["input"] == data.get("input", "{}")
            ):
                return engine.json_response(
                    {"executionArn": arn, "startDate": running["startDate"]}
                )
        return start(data)

    return start_execution


def _once(engine: Module) -> Callable[[dict[str, Any], str, str], None]:
    """An execution that was stopped or timed out does not fail on top of it."""
    fail = engine._fail_execution

    def fail_execution(execution: dict[str, Any], error: str, cause: str) -> None:
        if execution["status"] == "RUNNING":
            fail(execution, error, cause)

    return fail_execution


def _until_the_end(engine: Module) -> Callable[..., Any]:
    """The history ends with the event that ends the execution; branches write it one by one.

    API reference, HistoryEvent: "previousEventId: The id of the previous event". By it a reader
    follows one iteration among many.
    """
    add = engine._add_event
    writing = threading.Lock()

    def add_event(
        execution: dict[str, Any], kind: str, details: dict[str, Any] | None = None
    ) -> Json:
        if execution.get("status", "RUNNING") != "RUNNING" and not kind.startswith("Execution"):
            return None
        scope = current_scope()
        is_own = scope is not None and scope.execution is execution
        with writing:  # ids are positions
            event = add(execution, kind, details)
            event["previousEventId"] = _previous.get() if is_own else 0
        if is_own:
            _previous.set(event["id"])
        return event

    return add_event


def _interruptible(engine: Module, clock: Clock) -> Callable[[float], None]:
    """Wait states follow the clock, and end when their execution does."""

    def scaled_sleep(seconds: float) -> None:
        scope = current_scope()
        clock.sleep(seconds, scope.ended if scope else lambda: False)
        unless_ended(engine)

    return scaled_sleep
