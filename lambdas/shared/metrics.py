"""Metrics as lines of the log, in CloudWatch's embedded metric format.

CloudWatch Logs makes metrics of such a line by itself: no call, no permission, nothing to wait
for. A line holds figures, the stage and whose fault it is, never an id: ids would make one metric
for each user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

NAMESPACE: Final = "Limner"
STAGE: Final = "Stage"
FAULT: Final = "Fault"

# dispatch
LAUNCHED: Final = "Launched"
"""Requests that were given to an execution."""
THROTTLED: Final = "Throttled"
"""Starts that Step Functions refused because there were too many."""
QUEUE_DEPTH: Final = "QueueDepth"
"""Requests that still wait at the end of a round."""
OLDEST_QUEUED_AGE: Final = "OldestQueuedAgeSeconds"
"""How long the oldest of them has waited; 0 for an empty queue."""
QUEUED_REQUESTS: Final = "QueuedRequests"
"""Requests that came into the queue, as the stream tells."""
HOLDERS_IN_USE: Final = "HoldersInUse"
"""Executions that the gate counts."""
LAUNCHES_TODAY: Final = "LaunchesToday"
"""Launches since midnight UTC."""
# reconcile
STUCK_REQUESTS: Final = "StuckRequests"
"""Requests that were found in a state which nobody was going to end."""
REPAIRED_REQUESTS: Final = "RepairedRequests"
"""Requests that were moved on: put back into the queue, or ended."""
# record_failure
FAILED_REQUESTS: Final = "FailedRequests"
"""Requests that ended with a failure, by whose fault it is: ``caller``, ``aws`` or ``limner``."""

_SECONDS: Final = frozenset({OLDEST_QUEUED_AGE})


def metrics_line(
    stage: str, now_ms: int, values: Mapping[str, int], *, fault: str | None = None
) -> str:
    """One line of the embedded metric format.

    Args:
        stage: The deployment's stage, a dimension of all metrics.
        now_ms: When, in milliseconds since 1970.
        values: Metric to figure.
        fault: Whose fault it is that is counted; the other dimension, if any.
    """
    dimensions = {STAGE: stage, **({FAULT: fault} if fault else {})}
    described = [
        {"Name": name, "Unit": "Seconds" if name in _SECONDS else "Count"} for name in values
    ]
    return json.dumps(
        {
            "_aws": {
                "Timestamp": now_ms,
                "CloudWatchMetrics": [
                    {"Namespace": NAMESPACE, "Dimensions": [[*dimensions]], "Metrics": described}
                ],
            },
            **dimensions,
            **values,
        }
    )


def emit(stage: str, now_ms: int, values: Mapping[str, int], *, fault: str | None = None) -> None:
    """Writes the metrics where the Lambda runtime collects the log."""
    print(metrics_line(stage, now_ms, values, fault=fault), flush=True)  # noqa: T201 - the log's own channel
