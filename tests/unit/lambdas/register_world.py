"""``register`` over a table, a bucket and a bus in memory, whose calls can be injured."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image

from lambdas.register.logic import FORM_S, Arrival, Desk, Form, Record
from limner.contracts import keys
from limner.contracts.statuses import ALLOWED_FROM, RequestStatus

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@cache
def photo(number: int, kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    """A small image that differs from all others by its colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number % 256, 90)).save(buffer, kind)
    return buffer.getvalue()


def promise(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "type": kind}


def asked(user_id: str = "alice", count: int = 3, first: int = 0, **more: Any) -> dict[str, Any]:
    """An event of the action ``register``."""
    photos = [promise(photo(first + number)) for number in range(count)]
    return {"action": "register", "user_id": user_id, "photos": photos, **more}


def submitted(request_id: str, user_id: str = "alice", **more: Any) -> dict[str, Any]:
    return {"action": "submit", "request_id": request_id, "user_id": user_id, **more}


def nothing(_: str) -> None:
    """A call that is left alone."""


@dataclass
class Memory:
    """All three stores. ``before`` and ``after`` are called with the name of each of their calls.

    Attributes:
        rows: The table.
        objects: The bucket: key -> content type and bytes.
        configs: The configs in the bucket.
        events: What was announced.
        moves: All status writes.
        moment: A clock that counts calls.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    configs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    moves: list[tuple[str, str]] = field(default_factory=list)
    moment: int = 0
    before: Callable[[str], None] = nothing
    after: Callable[[str], None] = nothing

    def desk(self) -> Desk:
        return Desk(self, self, self, now=self.now, epoch_s=lambda: 1_700_000_000)

    def now(self) -> str:
        self.moment += 1
        return f"2026-01-01T00:00:00.{self.moment % 1_000:03}Z"

    def arrive(self, answer: Mapping[str, Any], *data: bytes, kind: str = "image/png") -> None:
        """Puts photos where the forms of an answer say."""
        places = {post["sha256"]: post["fields"]["key"] for post in answer["posts"]}
        for one in data:
            self.objects[places[hashlib.sha256(one).hexdigest()]] = (kind, one)

    def move(self, request_id: str, status: RequestStatus) -> None:
        """A write of a status; an illegal one is our bug."""
        row = self.rows[request_id]
        assert RequestStatus(row["status"]) in ALLOWED_FROM[status]
        row["status"] = status.value
        self.moves.append((request_id, status))

    # The table.

    def create(self, record: Record) -> Record:
        self.before("create")
        found = self.rows.setdefault(record["request_id"], dict(record))
        self.after("create")
        return dict(found)

    def read(self, request_id: str) -> Record | None:
        self.before("read")
        row = self.rows.get(request_id)
        return None if row is None else dict(row)

    def count_open(self, user_id: str, among: int) -> int:
        self.before("count_open")
        rows = [row for row in self.rows.values() if row["user_id"] == user_id]
        return sum("open" in row for row in rows[-among:])

    def complete(self, record: Record, moment: str, *, queued: bool) -> Record | None:
        self.before("complete")
        row = self.rows[record["request_id"]]
        if row["status"] == "REGISTERED":
            self.move(record["request_id"], RequestStatus.QUEUED)
            row.pop("uploads")
            row["updated_at"] = moment
            if queued:
                row |= {"queue": row["shard"], "queued_at": moment}
        self.after("complete")
        return dict(row)

    def enqueue(self, record: Record, moment: str) -> Record | None:
        self.before("enqueue")
        row = self.rows[record["request_id"]]
        if row["status"] == "QUEUED" and not {"owner", "queue"} & set(row):
            row |= {"queue": row["shard"], "queued_at": moment}
        self.after("enqueue")
        return dict(row)

    # The bucket.

    def write_config(self, key: str, config: Mapping[str, Any]) -> None:
        self.before("write_config")
        self.configs[key] = dict(config)
        self.after("write_config")

    def post(self, form: Form, expires_s: int) -> Mapping[str, Any]:
        assert expires_s == FORM_S
        return {"url": "http://bucket/", "fields": {"key": form.key, **form.fields}}

    def look(self, key: str) -> Arrival | None:
        self.before("look")
        if key not in self.objects:
            return None
        kind, data = self.objects[key]
        return Arrival(len(data), kind, hashlib.sha256(data).hexdigest(), io.BytesIO(data))

    # The bus.

    def announce(self, detail_type: str, detail: Mapping[str, Any]) -> None:
        self.before("announce")
        assert detail_type == "limner.onboarding.requested"
        self.events.append(detail)
        self.after("announce")

    def config_of(self, request_id: str) -> Mapping[str, Any]:
        return self.configs[keys.config_prefix(request_id) + keys.CONFIG_FILE]
