"""How long a training job may take.

SageMaker API reference, StoppingCondition: MaxRuntimeInSeconds is "the maximum length of time ...
that a training job can run before it is stopped", MaxWaitTimeInSeconds "the maximum length of time
... that a managed Spot training job has to complete", its waiting included.
"""

from __future__ import annotations

from typing import Final

from limner.local.clock import Clock, Deadline
from limner.local.sagemaker.store import Record

DEFAULT_MAX_RUNTIME_S: Final = 86_400


class Limits:
    """Limits of one job, on the clock's dial ``timeouts``; the wait begins now.

    Args:
        clock: The laptop's clock.
        record: Of the job.
    """

    def __init__(self, clock: Clock, record: Record) -> None:
        condition = record["StoppingCondition"]
        self._clock = clock
        self._runtime_s = condition.get("MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME_S)
        self._runtime: Deadline | None = None
        wait_s = condition.get("MaxWaitTimeInSeconds")
        self._wait = None if wait_s is None else clock.deadline(wait_s)

    def training_begins(self) -> None:
        """MaxRuntimeInSeconds counts from the first time that this is told."""
        self._runtime = self._runtime or self._clock.deadline(self._runtime_s)

    def exceeded(self) -> str | None:
        """The SecondaryStatus of a job that has exceeded a limit, or None."""
        if self._wait is not None and self._wait.passed():
            return "MaxWaitTimeExceeded"
        if self._runtime is not None and self._runtime.passed():
            return "MaxRuntimeExceeded"
        return None
