"""Waiting for a request: polls with a deadline, and notices an execution that left it behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from limner.contracts.errors import LimnerError
from limner.registry import Request

# DescribeExecution is limited to a few calls per second and account, GetItem is not: the execution
# is looked at rarely, and only to find out that nobody will move the record any more.
EXECUTION_CHECK_S: Final = 5.0
# EventBridge delivers the end of an execution near real time; its rule ends the record.
RECORD_GRACE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests can turn it.

    Attributes:
        monotonic: Seconds that never go back.
        sleep: Waits for that many seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def poll_request(
    read: Callable[[], Request],
    ended_without: Callable[[Request], LimnerError | None],
    *,
    timeout_s: float,
    poll_s: float,
    clock: Clock,
) -> Iterator[Request]:
    """Yields the request as it is at each poll; the last one has ended.

    Args:
        read: Reads the record.
        ended_without: Looks at the execution; the error to raise if it has ended, else None.
        timeout_s: Seconds until ``DEADLINE_EXCEEDED``; the request itself goes on.
        poll_s: Seconds between polls.
        clock: Time.

    Raises:
        LimnerError: ``DEADLINE_EXCEEDED``, or what ``ended_without`` says if the record still has
            not moved ``RECORD_GRACE_S`` later.
    """
    started = clock.monotonic()
    next_check = started + EXECUTION_CHECK_S
    gone_since: float | None = None
    while True:
        request = read()
        yield request
        if request.has_ended:
            return
        moment = clock.monotonic()
        if moment >= next_check:
            next_check = moment + EXECUTION_CHECK_S
            error = ended_without(request)
            if error is None:
                gone_since = None
            elif gone_since is None:
                gone_since = moment
            elif moment - gone_since >= RECORD_GRACE_S:
                raise error
        left_s = started + timeout_s - moment
        if left_s <= 0:
            detail = f"Request {request.request_id} is still {request.status} after {timeout_s:g} s"
            raise LimnerError("DEADLINE_EXCEEDED", f"{detail}; it goes on.")
        clock.sleep(min(poll_s, left_s))
