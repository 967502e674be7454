"""The writes of ``RecordAttempt`` and ``RecordWaiting`` for a request of a batch. Pure.

One function for all requests instead of a Map: a quota that is full for hours would fill the
history with a write for each request at every try.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lambdas.shared.dynamo import Plain
from limner.contracts.errors import LimnerError
from limner.contracts.outcomes import PLANNED
from limner.contracts.statuses import RequestStatus

# Where a request of ours may stand: also where this very write has left it, if its reply was lost.
CONDITION: Final = "#owner = :me AND #status IN (:training, :waiting)"
_UPDATES: Final = {
    RequestStatus.TRAINING: (
        "SET #status = :training, #job_name = :job, #version = :version, #updated_at = :now"
    ),
    RequestStatus.WAITING_FOR_CAPACITY: "SET #status = :waiting, #updated_at = :now",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What is to be written.

    Attributes:
        owner: ARN of the batch's execution.
        status: TRAINING or WAITING_FOR_CAPACITY.
        job_name: The job that comes, or that was refused.
        now: The time, as all rows have it.
    """

    owner: str
    status: RequestStatus
    job_name: str
    now: str

    @property
    def update(self) -> str:
        """The UpdateExpression.

        Raises:
            LimnerError: ``INTERNAL``, if a batch does not bring its requests to this status.
        """
        if self.status not in _UPDATES:
            raise LimnerError("INTERNAL", f"A batch does not make its requests {self.status}.")
        return _UPDATES[self.status]

    def values(self, item: Mapping[str, Any]) -> dict[str, Plain]:
        """The values of one request."""
        values: dict[str, Plain] = {
            ":training": RequestStatus.TRAINING.value,
            ":waiting": RequestStatus.WAITING_FOR_CAPACITY.value,
            ":me": self.owner,
            ":now": self.now,
        }
        if self.status is RequestStatus.TRAINING:
            values |= {":job": self.job_name, ":version": int(item["version"]["number"])}
        return values


def planned(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The requests that are still part of the batch."""
    return [item for item in items if item["outcome"] == PLANNED]
