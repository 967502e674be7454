"""Writes that several programs make alike, as DynamoDB's expressions. Pure.

The app's client and the functions put requests into the queue; the functions and the workers of the
training program take them out of it, under the same lease.

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


# Of a request that shares its execution, the wish to cancel it is a note (``:false`` is a value of
# whoever uses this).
NOT_CANCELLED: Final = "(attribute_not_exists(#cancel_requested) OR #cancel_requested = :false)"

# A lease makes a request its holder's, until a moment. ``lease_fence`` counts the leases: who holds
# an older one finds its writes refused.
LEASE: Final = (
    "SET #lease_until = :until, #lease_by = :me,"
    " #lease_fence = if_not_exists(#lease_fence, :zero) + :one,"
    " #attempt = if_not_exists(#attempt, :attempt)"
)
MAY_LEASE: Final = (
    "#status = :queued AND attribute_exists(#queue) AND attribute_not_exists(#owner)"
    # Reconcile ends it: whoever takes a lease could not tell the app.
    f" AND {NOT_CANCELLED}"
    " AND (#attempt = :attempt OR attribute_not_exists(#attempt))"
    " AND (attribute_not_exists(#lease_until) OR #lease_until <= :now OR #lease_by = :me)"
)
GIVE_BACK: Final = "REMOVE #lease_until, #lease_by"
HOLDS_LEASE: Final = "#lease_by = :me AND #lease_fence = :fence"

# A worker's lease, and what it may do with it: it trains ahead, and the request stays in the queue.
# Who has taken workers with it so often is trained in a job of its own.
WORKER_TRIES: Final = 2
WORKER_LEASE: Final = f"{LEASE}, #worker_tries = if_not_exists(#worker_tries, :zero) + :one"
WORKER_MAY_LEASE: Final = (
    f"{MAY_LEASE} AND attribute_not_exists(#trained_by)"
    # A repetition of a call whose reply was lost finds its own lease.
    " AND (attribute_not_exists(#worker_tries) OR #worker_tries < :tries OR #lease_by = :me)"
)
WORKER_MAY_GO_ON: Final = (
    f"{HOLDS_LEASE} AND #status = :queued AND attribute_not_exists(#owner) AND {NOT_CANCELLED}"
)
RENEW: Final = "SET #lease_until = :until"
# Names the job on whose shelf the result lies; ``onboard_batch`` takes it from there.
TRAINED_AHEAD: Final = "SET #trained_by = :job REMOVE #lease_until, #lease_by"


def lease(me: str, *, attempt: int, now: str, until: str) -> dict[str, str | int | bool]:
    """The values of ``LEASE`` and its condition.

    Args:
        me: Who takes it; unlike any other holder, so that a lost reply is recognised.
        attempt: The attempt that comes next.
        now: The present moment.
        until: When the lease ends.
    """
    return {
        ":until": until,
        ":me": me,
        ":false": False,
        ":zero": 0,
        ":one": 1,
        ":attempt": attempt,
        ":queued": RequestStatus.QUEUED.value,
        ":now": now,
    }
