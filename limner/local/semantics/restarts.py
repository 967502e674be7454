"""What a stop of the laptop interrupts is announced as failed at the next start.

AWS never stops; the laptop does. ministack marks executions that ran at the stop as FAILED when it
loads its snapshot, silently. Rules on "Step Functions Execution Status Change" must hear of it, or
the requests of these executions would stay in progress for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limner.local.json_types import Json
from limner.local.seams import Module

_interrupted: list[str] = []


def install(engine: Module) -> None:
    """Installs the correction of this module."""
    engine.load_persisted_state = _noting_interrupted(engine)


def announce_interrupted(engine: Module) -> int:
    """Emits the status change of each interrupted execution; call it once requests are served.

    Returns:
        How many there were.
    """
    count = 0
    while _interrupted:
        execution = engine._executions.get(_interrupted.pop())
        if execution is not None:
            engine._emit_execution_status_event(execution)
            count += 1
    return count


def _noting_interrupted(engine: Module) -> Callable[[Any], Any]:
    load = engine.load_persisted_state

    def load_persisted_state(data: Json) -> Json:
        executions = (data or {}).get("executions")
        if executions:
            _interrupted.extend(
                execution["executionArn"]
                for execution in executions.all_values()
                if execution.get("status") == "RUNNING"
            )
        return load(data)

    return load_persisted_state
