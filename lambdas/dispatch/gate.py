"""The gate: what may start now. Pure.

Whoever starts an execution passes the gate first. The gate is one small record: who is inside
(``holders``), when the next launch is due (``tat_ms``), and how many there were today. It is
never changed in place: ``admit`` and ``release`` make the next gate, and the store writes it only
if nobody else has written since (``fence``).

The record also is the log of intents: a holder is written *before* its execution starts, with all
that is needed to start the very same execution again. A dispatcher that dies between the two
leaves a holder, and the next one starts it: the same name and the same input are the same
execution.

::

    time ──>   admit (fence n -> n+1)       StartExecution        ...ended     release
    holder     ────────────┬────────────────────┬──────────────────────┬──────────┐
    crash                  └ started again ─────┘ same execution again └ reconcile┘

The rate is a GCRA (the leaky bucket as a meter, ITU-T I.371): one number instead of a bucket that
needs to be refilled. ``tat_ms`` is the theoretical arrival time of the next launch; a launch may
be early by ``burst - 1`` intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

# DynamoDB ends at 400 KB an item (developer guide, "Quotas": names and values in UTF-8).
MAX_BYTES: Final = 350_000
# Who was served last, so that one instance is shared by turns; the oldest are forgotten.
SERVED_KEPT: Final = 200
_BYTES_OF_STRUCTURE: Final = 8  # more than DynamoDB adds to an element, or the digits of a number
_BYTES_OF_HOLDER: Final = 64


class Reason(StrEnum):
    """Why a launch has to wait."""

    RATE = "RATE"
    INSTANCES = "INSTANCES"
    USER = "USER"
    DAY = "DAY"
    SPACE = "SPACE"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The launch has to wait.

    Attributes:
        reason: What for.
        wait_ms: For how long at least; 0 where only other executions can tell.
    """

    reason: Reason
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of one request.

    Attributes:
        request_id: The request.
        attempt: Which attempt.
        user_id: Whose.
        model_id: Of which model.
    """

    request_id: str
    attempt: int
    user_id: str
    model_id: str


@dataclass(frozen=True, slots=True)
class Holder:
    """An execution that is about to start, or that runs.

    Attributes:
        runs: What it does, in the order of its input.
        instances: Training instances that it may use; 0 if it publishes what was trained ahead.
        until_s: Seconds since 1970; no execution lives longer.
        batch: Whether the machine of batches runs it.
        since_s: Seconds since 1970; when it passed the gate.
    """

    runs: tuple[Run, ...]
    instances: int
    until_s: int
    batch: bool = False
    since_s: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gate keeps.

    Attributes:
        max_instances: Training instances inside at the same time.
        launches_per_second: Launches in the long run.
        burst: Launches at once after a pause.
        daily_launches: Launches a day (UTC).
        user_active: Requests of a user inside at the same time.
    """

    max_instances: int
    launches_per_second: float
    burst: int
    daily_launches: int
    user_active: int

    @property
    def interval_ms(self) -> int:
        """Milliseconds from one launch to the next; rounded up, never above the rate."""
        return math.ceil(1000 / self.launches_per_second)


@dataclass(frozen=True, slots=True)
class Gate:
    """The record as it was read.

    Attributes:
        fence: How often it was written.
        holders: Who is inside, by the name of the execution.
        tat_ms: Theoretical arrival time of the next launch, milliseconds since 1970.
        day: The day that ``launched`` counts, YYYY-MM-DD in UTC.
        launched: Launches of that day.
        served: When users were last given an instance, milliseconds since 1970.
    """

    fence: int = 0
    holders: Mapping[str, Holder] = field(default_factory=dict)
    tat_ms: int = 0
    day: str = ""
    launched: int = 0
    served: Mapping[str, int] = field(default_factory=dict)

    @property
    def instances(self) -> int:
        """Training instances that are taken."""
        return sum(holder.instances for holder in self.holders.values())

    def active(self) -> Counter[str]:
        """Requests inside, by user."""
        return Counter(run.user_id for holder in self.holders.values() for run in holder.runs)

    def models(self) -> frozenset[tuple[str, str]]:
        """Models that somebody inside works on; two requests of one would meet MODEL_BUSY."""
        return frozenset(
            (run.user_id, run.model_id) for holder in self.holders.values() for run in holder.runs
        )

    def requests(self) -> dict[str, str]:
        """Requests inside, and the name of the execution that has each."""
        return {
            run.request_id: name for name, holder in self.holders.items() for run in holder.runs
        }

    def launched_on(self, day: str) -> int:
        """Launches of a day."""
        return self.launched if self.day == day else 0

    def size_bytes(self) -> int:
        """At most so many bytes in DynamoDB."""
        size = sum(len(user) + _BYTES_OF_STRUCTURE for user in self.served) + 2 * _BYTES_OF_HOLDER
        for name, holder in self.holders.items():
            size += len(name) + _BYTES_OF_HOLDER
            for run in holder.runs:
                texts = len(run.request_id) + len(run.user_id) + len(run.model_id)
                size += texts + 3 * _BYTES_OF_STRUCTURE
        return size


def admit(gate: Gate, name: str, holder: Holder, limits: Limits, now_ms: int) -> Gate | Refusal:
    """Decides about a launch.

    Args:
        gate: The gate as it was read.
        name: Name of the execution.
        holder: What it is going to do.
        limits: What the gate keeps.
        now_ms: Milliseconds since 1970.

    Returns:
        The gate with the holder inside, to be written; the very same gate if it is inside already
        (an earlier write whose reply was lost); or why it has to wait.
    """
    if name in gate.holders:
        return gate
    if holder.instances and gate.instances + holder.instances > limits.max_instances:
        return Refusal(Reason.INSTANCES)
    if not _users_may(gate, holder, limits.user_active):
        return Refusal(Reason.USER)
    if not holder.instances:
        # It makes no training job, so neither the rate nor the budget is about it.
        return _with_room(replace(gate, holders={**gate.holders, name: holder}))
    day = day_of(now_ms)
    launched = gate.launched_on(day)
    if launched >= limits.daily_launches:
        return Refusal(Reason.DAY)
    due_ms = gate.tat_ms - (limits.burst - 1) * limits.interval_ms
    if now_ms < due_ms:
        return Refusal(Reason.RATE, due_ms - now_ms)
    served = {**gate.served, **{run.user_id: now_ms for run in holder.runs}}
    if len(served) > SERVED_KEPT:
        kept = sorted(served, key=lambda user: served[user], reverse=True)[:SERVED_KEPT]
        served = {user: served[user] for user in kept}
    after = Gate(
        fence=gate.fence,
        holders={**gate.holders, name: holder},
        tat_ms=max(gate.tat_ms, now_ms) + limits.interval_ms,
        day=day,
        launched=launched + 1,
        served=served,
    )
    return _with_room(after)


def _with_room(gate: Gate) -> Gate | Refusal:
    return Refusal(Reason.SPACE) if gate.size_bytes() > MAX_BYTES else gate


def release(gate: Gate, name: str) -> Gate:
    """The gate without a holder; the very same gate if it is not inside."""
    if name not in gate.holders:
        return gate
    return replace(gate, holders={n: h for n, h in gate.holders.items() if n != name})


def withdraw(gate: Gate, name: str) -> Gate:
    """The gate without a holder that has not started after all: it counts as no launch."""
    left = release(gate, name)
    if left is gate or not gate.holders[name].instances:
        return left
    return replace(left, launched=max(left.launched - 1, 0))


def day_of(now_ms: int) -> str:
    """The day of a moment, in UTC."""
    return datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()


def _users_may(gate: Gate, holder: Holder, user_active: int) -> bool:
    active, models, inside = gate.active(), set(gate.models()), gate.requests()
    for run in holder.runs:
        model = (run.user_id, run.model_id)
        if run.request_id in inside or model in models or active[run.user_id] >= user_active:
            return False
        active[run.user_id] += 1
        models.add(model)
    return True
