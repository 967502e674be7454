"""The branches of Parallel and the iterations of Map: in the history, and ended by one that fails.

Step Functions API reference, HistoryEvent: MapStateStarted, MapIterationStarted (name, index),
…Succeeded, …Failed, …Aborted, ParallelStateStarted …, and the events of the states inside. Amazon
States Language, Parallel: "If any branch fails, due to an unhandled error or by transitioning to a
Fail state, the entire Parallel state is considered to have failed, and all the branches are
stopped." Map: "A Map state will fail if any of its iterations fail. All the iterations get
stopped."
"""

from __future__ import annotations

import contextvars
import copy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from limner.local.json_types import Json
from limner.local.seams import Module
from limner.local.semantics.executions import Scope, current_scope, entered, unless_ended

_CALLED_WITH_EXECUTION = {
    "Task": "_execute_task",
    "Parallel": "_execute_parallel",
    "Map": "_execute_map",
}
_CALLED_WITHOUT = {"Pass": "_execute_pass", "Choice": "_execute_choice", "Wait": "_execute_wait"}


@dataclass
class _Group:
    """The branches of one visit of a Parallel or Map.

    Attributes:
        kind: ``Map`` or ``Parallel``.
        name: Of the state.
        scope: What the branches work in; it has expired once one has failed.
        error: Of the branch that has failed first.
    """

    kind: str
    name: str
    scope: Scope
    error: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: Exception) -> bool:
        """Ends the other branches; returns whether this is the branch that has failed first."""
        with self.lock:
            if self.scope.ended():
                return False
            self.error = error
            self.scope.expired.set()
            return True


_group: contextvars.ContextVar[_Group | None] = contextvars.ContextVar("branches", default=None)


def install(engine: Module) -> None:
    """Installs the corrections of this module."""
    engine._run_map_items = _grouped(engine, "Map", _items_checked(engine))
    engine._run_parallel_branches = _grouped(engine, "Parallel", engine._run_parallel_branches)
    engine._run_sub_machine = _branch(engine)


def _items_checked(engine: Module) -> Callable[..., Any]:
    """ItemsPath must select an array; the engine makes one of anything else."""
    run_items = engine._run_map_items

    def run_map_items(
        state: dict[str, Any], data: Json, execution: dict[str, Any], context: dict[str, Any]
    ) -> Json:
        if engine._state_query_language(state, context) == "JSONPath" and "ItemReader" not in state:
            path = state.get("ItemsPath", "$")
            items = engine._resolve_path_or_ctx(
                path, engine._apply_input_path(state, data, context), context
            )
            if not isinstance(items, list):
                raise engine._ExecutionError(
                    "States.Runtime", f"Reference path '{path}' must point to an array."
                )
            engine._add_event(
                execution,
                "MapStateStarted",
                {"mapStateStartedEventDetails": {"length": len(items)}},
            )
        return run_items(state, data, execution, context)

    return run_map_items


def _grouped(engine: Module, kind: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def run_group(
        state: dict[str, Any], data: Json, execution: dict[str, Any], context: dict[str, Any]
    ) -> Json:
        group = _Group(kind, context["State"]["Name"], Scope(execution, outer=current_scope()))
        if kind == "Parallel":
            engine._add_event(execution, "ParallelStateStarted")
        token = _group.set(group)
        try:
            with entered(group.scope):
                output = run(state, data, execution, context)
        except engine._ExecutionError as error:
            engine._add_event(execution, f"{kind}StateFailed")
            raise group.error or error from error
        finally:
            _group.reset(token)
        engine._add_event(execution, f"{kind}StateSucceeded")
        return output

    return run_group


def _branch(engine: Module) -> Callable[..., Any]:
    def run_branch(
        states: dict[str, Any],
        start_at: str,
        data: Json,
        execution: dict[str, Any],
        context: dict[str, Any],
    ) -> Json:
        group = _group.get()

        def note(outcome: str) -> None:
            if group is not None and group.kind == "Map":
                details = {"name": group.name, "index": context["Map"]["Item"]["Index"]}
                member = f"mapIteration{outcome}EventDetails"
                engine._add_event(execution, f"MapIteration{outcome}", {member: details})

        try:
            unless_ended(engine)
            note("Started")
            output = _walk(engine, states, start_at, copy.deepcopy(data), execution, context)
        except engine._ExecutionError as error:
            note("Failed" if group is None or group.fail(error) else "Aborted")
            raise
        note("Succeeded")
        return output

    return run_branch


def _walk(
    engine: Module,
    states: dict[str, Any],
    name: str | None,
    data: Json,
    execution: dict[str, Any],
    context: dict[str, Any],
) -> Json:
    """From state to state, as the engine does on the top level, events included."""
    while name:
        unless_ended(engine)
        state = states.get(name)
        if state is None:
            raise engine._ExecutionError("States.Runtime", f"State '{name}' not found")
        kind = state.get("Type")
        context["State"] = {"Name": name, "EnteredTime": engine.now_iso(), "RetryCount": 0}
        _note_state(engine, execution, f"{kind}StateEntered", name, "input", data)
        following: str | None = None
        if kind == "Fail":
            raise engine._ExecutionError(*engine._fail_state_error(state, data, context))
        if kind == "Succeed":
            data = engine._apply_output_path(
                state, engine._apply_input_path(state, data, context), context
            )
        elif kind in _CALLED_WITH_EXECUTION:
            execute = getattr(engine, _CALLED_WITH_EXECUTION[kind])
            data, following = execute(state, data, execution, context)
        elif kind in _CALLED_WITHOUT:
            data, following = getattr(engine, _CALLED_WITHOUT[kind])(state, data, context)
        else:
            raise engine._ExecutionError("States.Runtime", f"Unknown state type: {kind}")
        _note_state(engine, execution, f"{kind}StateExited", name, "output", data)
        name = following
    return data


def _note_state(
    engine: Module, execution: dict[str, Any], kind: str, name: str, member: str, data: Json
) -> None:
    details = "stateEnteredEventDetails" if member == "input" else "stateExitedEventDetails"
    engine._add_event(execution, kind, {details: {"name": name, member: json.dumps(data)}})
