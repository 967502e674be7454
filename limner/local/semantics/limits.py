"""The quota on what states hand on.

Step Functions developer guide, "Quotas": "Maximum input or output size for a task, state, or
execution: 256 KiB of data as a UTF-8 encoded string." Exceeding it is States.DataLimitExceeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limner.local.json_types import Json
from limner.local.seams import Module

MAX_PAYLOAD_BYTES = 262_144
_OUTPUT_OF = {
    "TaskSucceeded": "taskSucceededEventDetails",
    "StateExited": "stateExitedEventDetails",
}


def install(engine: Module) -> None:
    """Installs the correction of this module."""
    add = engine._add_event
    engine._add_event = _limited(engine, add)


def _limited(engine: Module, add: Callable[..., Any]) -> Callable[..., Any]:
    def add_event(
        execution: dict[str, Any], kind: str, details: dict[str, Any] | None = None
    ) -> Json:
        member = _OUTPUT_OF["StateExited" if kind.endswith("StateExited") else "TaskSucceeded"]
        output = (details or {}).get(member, {}).get("output", "")
        if len(output.encode()) > MAX_PAYLOAD_BYTES:
            raise engine._ExecutionError(
                "States.DataLimitExceeded",
                "The state/task returned a result with a size exceeding the maximum number of "
                "bytes service limit.",
            )
        return add(execution, kind, details)

    return add_event
