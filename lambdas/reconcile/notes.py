"""What reconcile remembers from one run to the next: the row ``#reconcile``.

``cursors`` says how far each shard was looked through, so that a run may be short and the next
one goes on. ``owed`` holds requests whose ending was begun: it is written before the ending and
deleted after the announcement, because an ended request is in no index where a crash in between
could be found. An entry begins with its time: a fresh one is the business of a run that is still
at work, and would be announced twice.
"""

from __future__ import annotations

from typing import Any, Final

from lambdas.shared.dynamo import Item, Table

KEY: Final = {"request_id": "#reconcile"}
# Longer than an invocation can last.
LIFE_S: Final = 180


class Notes:
    """The row ``#reconcile``.

    Args:
        requests: Table of requests.
    """

    def __init__(self, requests: Table) -> None:
        self._requests = requests

    def read(self, now_ms: int) -> tuple[dict[str, Item], list[str]]:
        """The cursors by shard, and the entries of endings whose run has died."""
        row: dict[str, Any] = self._requests.read(KEY) or {}
        died_ms = now_ms - LIFE_S * 1000
        owed = [entry for entry in row.get("owed", ()) if int(entry.partition(" ")[0]) <= died_ms]
        return dict(row.get("cursors", {})), sorted(owed)

    def save(self, cursors: dict[str, Item]) -> None:
        """Keeps how far each shard was looked through."""
        self._requests.update(KEY, "SET #cursors = :cursors", "", {":cursors": cursors})

    def owe(self, request_id: str, now_ms: int) -> str:
        """Notes that a request is about to be ended; returns the entry."""
        entry = f"{now_ms} {request_id}"
        self._requests.update(KEY, "ADD #owed :one", "", {":one": frozenset({entry})})
        return entry

    def done(self, entry: str) -> None:
        """The request has ended, and everybody knows."""
        self._requests.update(KEY, "DELETE #owed :one", "", {":one": frozenset({entry})})


def request_of(entry: str) -> str:
    """The request of an entry."""
    return entry.partition(" ")[2]
