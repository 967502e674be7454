"""The queue: what waits, and whose it is while it is being started.

::

    row        in the queue                          claimed by its execution
    queue      ─────────────────────────────────────────┐ removed by ClaimRequest
    lease      ·····┌── A, fence 4 ──┐··┌── B, fence 5 ──┤ removed by ClaimRequest
                    └ A dies         └ over              └

A lease is taken by a conditional write and ends by itself. ``lease_fence`` counts the leases: who
holds an older one finds its writes refused. ``lease_by`` recognises our own write when its reply
was lost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from lambdas.dispatch.gate import Run
from lambdas.dispatch.logic import Candidate, read_candidate, to_candidate
from lambdas.record_failure.logic import Failure
from lambdas.shared.clock import Clock, iso
from lambdas.shared.dynamo import Item, Plain, Table
from limner.contracts import keys, writes
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import RequestStatus

INDEX: Final = "queue"
# An attempt that began is not begun again so often; reconcile ends the request (`spent`).
MAX_ATTEMPTS: Final = 3
# The first look at a shard.
_WINDOW: Final = 100
# Further looks, 1 MB each: some thousand rows of users that flood are passed over by each.
_MORE_PAGES: Final = 10
# A user with so many rows in sight is passed over by the further looks.
_FLOOD: Final = 10
# FilterExpression takes at most 100 operands for IN (developer guide, "Expression parameters").
_MOST_FLOODERS: Final = 100


@dataclass(frozen=True, slots=True)
class Lease:
    """A candidate that is ours to start.

    Attributes:
        candidate: The request as it was when the lease began.
        fence: Number of the lease.
        until_ms: When it ends.
    """

    candidate: Candidate
    fence: int
    until_ms: int


class Waiting:
    """The queue in the table of requests.

    Args:
        requests: Table of requests.
        clock: The invocation's clock.
        me: Name of this invocation, unlike any other's.
        lease_s: How long a lease lasts.
    """

    def __init__(self, requests: Table, clock: Clock, me: str, lease_s: int) -> None:
        self._requests = requests
        self._clock = clock
        self._me = me
        self._lease_ms = lease_s * 1000

    def look(self) -> tuple[list[Candidate], list[Item]]:
        """What waits in all shards, bounded, oldest first in each.

        Returns:
            The candidates, and rows that no request can have.
        """
        candidates, bad = [], []
        for shard in range(keys.SHARDS):
            for item in self._look_at(str(shard)):
                try:
                    candidates.append(read_candidate(item))
                except LimnerError:
                    bad.append(item)
        return candidates, bad

    def _look_at(self, shard: str) -> list[Item]:
        """A shard's window; a user's flood does not fill it.

        The rows of whoever floods are filtered where they lie, so that a few calls reach behind
        thousands of them.
        """
        items, start = self._requests.page(INDEX, "#queue = :s", {":s": shard}, limit=_WINDOW)
        for _ in range(_MORE_PAGES):
            rows = Counter(item.get("user_id") for item in items)
            if start is None or len(rows) >= _WINDOW:
                break
            flooders = [str(u) for u, n in rows.most_common(_MOST_FLOODERS) if n >= _FLOOD]
            values: dict[str, Plain] = {f":u{i}": user for i, user in enumerate(flooders)}
            where = f"NOT (#user_id IN ({', '.join(values)}))" if values else ""
            more, start = self._requests.page(
                INDEX, "#queue = :s", {":s": shard, **values}, where=where, start=start
            )
            items += more
        return items

    def lease(self, candidate: Candidate) -> Lease | None:
        """Makes a request ours to start; None if it does not wait any more, or is another's."""
        now_ms = self._clock.now_ms()
        until_ms = now_ms + self._lease_ms
        item = self._requests.change(
            {"request_id": candidate.run.request_id},
            update=writes.LEASE,
            condition=writes.MAY_LEASE,
            values=writes.lease(
                self._me, attempt=candidate.run.attempt, now=iso(now_ms), until=iso(until_ms)
            ),
        )
        if item is None:
            return None
        return Lease(read_candidate({**item, "lease_until": ""}), item["lease_fence"], until_ms)

    def give_back(self, lease: Lease) -> None:
        """Ends a lease that is still ours."""
        self._requests.update(
            {"request_id": lease.candidate.run.request_id},
            update=writes.GIVE_BACK,
            condition=writes.HOLDS_LEASE,
            values={":me": self._me, ":fence": lease.fence},
        )

    def read(self, run: Run) -> Candidate | None:
        """A request, for the attempt that is asked for; None if it is gone, or spoiled."""
        item = self._requests.read({"request_id": run.request_id})
        if item is None or not isinstance(item.get("retrain", False), bool):
            return None
        return to_candidate(
            item,
            run,
            retrain=item.get("retrain", False),
            queued_at=str(item.get("queued_at", "")),
        )

    def next_attempt(self, run: Run) -> bool:
        """Counts an attempt up whose execution is over without having touched the request.

        Returns:
            Whether the request waits for its next attempt; else it has moved on, or there were
            so many that it leaves the queue for ``reconcile`` to end it.
        """
        again = run.attempt < MAX_ATTEMPTS
        values: dict[str, Plain] = {
            ":queued": RequestStatus.QUEUED.value,
            ":attempt": run.attempt,
            ":now": self._clock.now(),
        }
        changed = self._requests.update(
            {"request_id": run.request_id},
            update=(
                "SET #attempt = :next, #updated_at = :now REMOVE #lease_until, #lease_by"
                if again
                else "SET #spent = :true, #updated_at = :now REMOVE #queue, #lease_until, #lease_by"
            ),
            condition="#status = :queued AND attribute_not_exists(#owner) AND #attempt = :attempt",
            values={**values, **({":next": run.attempt + 1} if again else {":true": True})},
        )
        return changed and again

    def refuse(self, item: Item) -> bool:
        """Ends a row that no request can have; there is nobody whom it could be announced to."""
        failure = Failure("INVALID_INPUT", "The request's row is not that of a request.")
        return self._requests.update(
            {"request_id": item["request_id"]},
            update=(
                "SET #status = :failed, #error = :error, #updated_at = :now"
                " REMOVE #queue, #open, #lease_until, #lease_by"
            ),
            condition="attribute_exists(#queue) AND attribute_not_exists(#owner)",
            values={
                ":failed": RequestStatus.FAILED.value,
                ":error": failure.to_error(),
                ":now": self._clock.now(),
            },
        )
