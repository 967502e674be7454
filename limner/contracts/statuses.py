"""The life of a request, and which step may follow which.

::

    REGISTERED ──> QUEUED ──────────────> TRAINING ──> TRAINED ──> READY
        │            │  └> WAITING_FOR_CAPACITY ┘ │        │
        └────────────┴──────────────┬─────────────┴────────┘
                                    └> FAILED | CANCELLED

``REGISTERED`` means that photos are still to come, ``TRAINED`` that the artifact exists and is
being published, tested and activated; in a batch that lost a job half-way it also follows upon
``WAITING_FOR_CAPACITY``. The one way back is from ``TRAINING`` or
``WAITING_FOR_CAPACITY`` to ``QUEUED``: a job ended without having done this request's part.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class RequestStatus(StrEnum):
    """Status of one request."""

    REGISTERED = "REGISTERED"
    QUEUED = "QUEUED"
    WAITING_FOR_CAPACITY = "WAITING_FOR_CAPACITY"
    TRAINING = "TRAINING"
    TRAINED = "TRAINED"
    READY = "READY"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether the request has ended."""
        return self in TERMINAL


class VersionStatus(StrEnum):
    """Status of one version of a model."""

    TRAINED = "TRAINED"
    READY = "READY"
    FAILED = "FAILED"


TERMINAL: Final = frozenset({RequestStatus.READY, RequestStatus.FAILED, RequestStatus.CANCELLED})

# For each status, the statuses that a request may have had right before. Every write of a status
# carries a subset of this set in its ConditionExpression, so status only moves along the picture.
ALLOWED_FROM: Final[dict[RequestStatus, frozenset[RequestStatus]]] = {
    RequestStatus.REGISTERED: frozenset(),
    RequestStatus.QUEUED: frozenset(
        {RequestStatus.REGISTERED, RequestStatus.TRAINING, RequestStatus.WAITING_FOR_CAPACITY}
    ),
    RequestStatus.WAITING_FOR_CAPACITY: frozenset({RequestStatus.QUEUED, RequestStatus.TRAINING}),
    RequestStatus.TRAINING: frozenset({RequestStatus.QUEUED, RequestStatus.WAITING_FOR_CAPACITY}),
    # A batch that waits for another machine may find that its lost job had finished a request.
    RequestStatus.TRAINED: frozenset({RequestStatus.TRAINING, RequestStatus.WAITING_FOR_CAPACITY}),
    # QUEUED -> READY is the branch of a user whose model is ready already.
    RequestStatus.READY: frozenset({RequestStatus.TRAINED, RequestStatus.QUEUED}),
    RequestStatus.FAILED: frozenset(set(RequestStatus) - TERMINAL),
    RequestStatus.CANCELLED: frozenset(set(RequestStatus) - TERMINAL),
}
