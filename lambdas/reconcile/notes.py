"""What reconcile remembers from one run to the next: the row ``#reconcile``.

``cursors`` says how far each shard was looked through, so that a run may be short and the next
one goes on. ``owed`` holds requests whose ending was begun: it is written before the ending and
deleted after the announcement, because an ended request is in no index where a crash in between
could be found.
"""

from __future__ import annotations

from typing import Any, Final

from lambdas.shared.dynamo import Item, Table

KEY: Final = {"request_id": "#reconcile"}


class Notes:
    """The row ``#reconcile``.

    Args:
        requests: Table of requests.
    """

    def __init__(self, requests: Table) -> None:
        self._requests = requests

    def read(self) -> tuple[dict[str, Item], frozenset[str]]:
        """The cursors by shard, and the requests that are owed an ending."""
        row: dict[str, Any] = self._requests.read(KEY) or {}
        return dict(row.get("cursors", {})), row.get("owed", frozenset())

    def save(self, cursors: dict[str, Item]) -> None:
        """Keeps how far each shard was looked through."""
        self._requests.update(KEY, "SET #cursors = :cursors", "", {":cursors": cursors})

    def owe(self, request_id: str) -> None:
        """A request is about to be ended."""
        self._requests.update(KEY, "ADD #owed :one", "", {":one": frozenset({request_id})})

    def done(self, request_id: str) -> None:
        """A request has ended, and everybody knows."""
        self._requests.update(KEY, "DELETE #owed :one", "", {":one": frozenset({request_id})})
