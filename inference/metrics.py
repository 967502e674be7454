"""Metrics of loads, generations and capture, as lines of the log that CloudWatch makes metrics of.

The embedded metric format: no call, no permission, nothing to wait for (Amazon CloudWatch user
guide, "Specification: Embedded metric format"). The base is the only dimension. The model is a
property, by a fingerprint: a dimension would make (and bill) a metric for each user, a property
can be asked for in Logs Insights all the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from inference.logs import fingerprint, log
from limner.contracts.metrics import (
    BASE,
    DENOISE_MS,
    EVENT,
    EVICTIONS,
    LOAD_MS,
    MODEL,
    QUEUE_MS,
    RESIDENT_BYTES,
    SLOT_HITS,
    SLOT_MISSES,
)

# Named here too, for those who record them.
__all__ = [
    "BASE",
    "CAPTURES_DROPPED",
    "CAPTURES_FAILED",
    "CAPTURES_UNNAMED",
    "CAPTURES_WRITTEN",
    "DENOISE_MS",
    "EVICTIONS",
    "LOAD_MS",
    "NAMESPACE",
    "QUEUE_MS",
    "RESIDENT_BYTES",
    "SLOT_HITS",
    "SLOT_MISSES",
    "record",
]

NAMESPACE: Final = "Limner"

CAPTURES_WRITTEN: Final = "CapturesWritten"
"""Generations that were written to the bucket since the last such line."""
CAPTURES_DROPPED: Final = "CapturesDropped"
"""Those that were not, since the writer had no room or no time left."""
CAPTURES_FAILED: Final = "CapturesFailed"
"""Those that S3 refused."""
CAPTURES_UNNAMED: Final = "CapturesUnnamed"
"""Those of which nobody said whose model drew."""

_UNITS: Final = {
    LOAD_MS: "Milliseconds",
    QUEUE_MS: "Milliseconds",
    DENOISE_MS: "Milliseconds",
    RESIDENT_BYTES: "Bytes",
}


def record(base_id: str, model: str | None, values: Mapping[str, float]) -> None:
    """Writes one line of metrics.

    Args:
        base_id: The base, the dimension.
        model: The platform's name of the model; its fingerprint is written. None where the
            figures are not about one model.
        values: Metric to figure.
    """
    described = [{"Name": name, "Unit": _UNITS.get(name, "Count")} for name in values]
    directive = {"Namespace": NAMESPACE, "Dimensions": [[BASE]], "Metrics": described}
    log(
        EVENT,
        {
            "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]},
            BASE: base_id,
            **({} if model is None else {MODEL: fingerprint(model)}),
            **{name: round(value, 3) for name, value in values.items()},
        },
    )
