"""One dispatcher at a time.

A burst of events wakes a crowd: a hundred executions that end call ``dispatch`` a hundred times.
The gate would keep them apart, one lost race after the other; so whoever finds a round at work
leaves a note instead, and the one at work looks again::

    A   take ── round ─────────────── leave? no: a note ── round ── leave
    B            └ busy: leave a note, go home

This is for speed alone. A turn ends by itself when its invocation must be over, and two rounds at
the same time would do no harm.
"""

from __future__ import annotations

from typing import Final

from lambdas.shared.clock import Clock, iso
from lambdas.shared.dynamo import Table

KEY: Final = {"request_id": "#dispatch"}
# Busy and free may alternate while one looks; the schedule comes again anyway.
_TRIES: Final = 5


class Turn:
    """The row ``#dispatch`` of the table of requests.

    Args:
        requests: Table of requests.
        clock: The invocation's clock.
        me: Name of this invocation, unlike any other's.
    """

    def __init__(self, requests: Table, clock: Clock, me: str) -> None:
        self._requests = requests
        self._clock = clock
        self._me = me
        self._until_ms = clock.now_ms() + clock.remaining_ms()

    def take(self) -> bool:
        """Takes the turn, or asks whoever has it to look again; returns whether it is ours."""
        for _ in range(_TRIES):
            now = iso(self._clock.now_ms())
            taken = self._requests.update(
                KEY,
                update="SET #until = :until, #by = :me REMOVE #again",
                condition="attribute_not_exists(#by) OR #by = :me OR #until <= :now",
                values={":until": iso(self._until_ms), ":me": self._me, ":now": now},
            )
            if taken:
                return True
            noted = self._requests.update(
                KEY,
                update="SET #again = :true",
                condition="#until > :now",
                values={":true": True, ":now": now},
            )
            if noted:
                return False
        return False

    def leave(self) -> bool:
        """Gives the turn back; False if somebody has asked for another look, and it stays ours."""
        left = self._requests.update(
            KEY,
            update="REMOVE #until, #by",
            condition="#by = :me AND attribute_not_exists(#again)",
            values={":me": self._me},
        )
        if left:
            return True
        row = self._requests.read(KEY) or {}
        return bool(row.get("by") != self._me)

    def drop(self) -> None:
        """Gives the turn back before all was done; what others have asked for, the next does."""
        self._requests.update(
            KEY,
            update="REMOVE #until, #by",
            condition="#by = :me",
            values={":me": self._me},
        )
