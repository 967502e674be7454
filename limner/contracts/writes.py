"""Writes that the app's client and the functions make alike, as DynamoDB's expressions. Pure.

Attribute names are written ``#name``; whoever writes fills them in, and puts the values into the
form of its own library.
"""

from __future__ import annotations

from typing import Final

from limner.contracts import keys
from limner.contracts.statuses import RequestStatus

# What was promised of photos is forgotten when they are there: it is the larger part of the row,
# and is paid for with each of the writes to come.
COMPLETE: Final = "SET #status = :queued, #updated_at = :now REMOVE #uploads"
COMPLETE_INTO_QUEUE: Final = (
    "SET #status = :queued, #updated_at = :now, #queue = :shard, #queued_at = :now REMOVE #uploads"
)
MAY_COMPLETE: Final = "#status = :registered"
INTO_QUEUE: Final = "SET #queue = :shard, #queued_at = :now, #updated_at = :now"
MAY_QUEUE: Final = (
    "#status = :queued AND attribute_not_exists(#owner) AND attribute_not_exists(#queue)"
)


def complete(now: str) -> dict[str, str]:
    """The values of ``COMPLETE`` and its condition."""
    return {
        ":queued": RequestStatus.QUEUED.value,
        ":registered": RequestStatus.REGISTERED.value,
        ":now": now,
    }


def into_queue(user_id: str, now: str) -> dict[str, str]:
    """The values of ``INTO_QUEUE`` and its condition."""
    return {
        ":queued": RequestStatus.QUEUED.value,
        ":shard": keys.shard_of(user_id),
        ":now": now,
    }
