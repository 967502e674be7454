"""The table, the bucket and the bus of ``register``, on AWS."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from lambdas.register.logic import Arrival, Form, Record
from lambdas.shared.dynamo import Table
from limner.contracts import writes
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_s3 import S3Client

BY_USER: Final = "by_user"
# A header is nearly always in the first range; each further one is twice as long as the one before,
# so that even a crafted file of 25 MB takes no more than nine.
_FIRST_RANGE_BYTES: Final = 1 << 16
_HASHED_BYTES: Final = 1 << 20
# S3 says 403 instead of 404 to a role that may not list the bucket. Ours may list its folder, by a
# prefix that HeadObject does not name: taken for "may not", as for a role without that right.
_NOT_THERE: Final = frozenset({"404", "NoSuchKey", "NotFound", "403", "AccessDenied", "Forbidden"})


class RequestBook:
    """The table of requests.

    Args:
        table: The table.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def create(self, record: Record) -> Record:
        """Writes a record, or returns the one that has its id already.

        A reply that was lost is met by the SDK's retry, which finds the record: its digest says
        that it is ours.
        """
        fields = {name: value for name, value in record.items() if name != "request_id"}
        written = self._table.change(
            {"request_id": record["request_id"]},
            update="SET " + ", ".join(f"#{name} = :{name}" for name in fields),
            condition="attribute_not_exists(#request_id)",
            values={f":{name}": value for name, value in fields.items()},
        )
        found = written or self.read(record["request_id"])
        if found is None:  # it expired between the two; the next call makes it anew
            raise LimnerError("AWS_ERROR", "The record went away while it was read.")
        return found

    def read(self, request_id: str) -> Record | None:
        """A record."""
        return self._table.read({"request_id": request_id})

    def count_open(self, user_id: str, among: int) -> int:
        """How many of a user's last requests have not ended; a moment late."""
        found, _ = self._table.page(
            BY_USER,
            "#user_id = :user",
            {":user": user_id},
            where="attribute_exists(#open)",
            limit=among,
            newest_first=True,
        )
        return len(found)

    def complete(self, record: Record, moment: str, *, queued: bool) -> Record | None:
        """Makes a REGISTERED record QUEUED; returns it as it stands."""
        return self._change(
            record,
            writes.COMPLETE_INTO_QUEUE if queued else writes.COMPLETE,
            writes.MAY_COMPLETE,
            {
                **writes.complete(moment),
                **(writes.into_queue(record["user_id"], moment) if queued else {}),
            },
        )

    def enqueue(self, record: Record, moment: str) -> Record | None:
        """Puts a QUEUED record that nobody has claimed into the queue; as it stands."""
        return self._change(
            record,
            writes.INTO_QUEUE,
            writes.MAY_QUEUE,
            writes.into_queue(record["user_id"], moment),
        )

    def _change(
        self, record: Record, update: str, condition: str, values: Mapping[str, Any]
    ) -> Record | None:
        key = {"request_id": record["request_id"]}
        return self._table.change(key, update, condition, values) or self._table.read(key)


class PhotoBucket:
    """The bucket of photos and configs.

    Args:
        s3: A client of S3.
        name: The bucket.
    """

    def __init__(self, s3: S3Client, name: str) -> None:
        self._s3 = s3
        self._name = name

    def write_config(self, key: str, config: Mapping[str, Any]) -> None:
        """Writes a training config."""
        self._s3.put_object(
            Bucket=self._name,
            Key=key,
            Body=json.dumps(config).encode(),
            ContentType="application/json",
        )

    def post(self, form: Form, expires_s: int) -> Mapping[str, Any]:
        """The presigned POST of a form; made here, without a call."""
        return self._s3.generate_presigned_post(
            self._name,
            form.key,
            Fields=dict(form.fields),
            Conditions=list(form.conditions),
            ExpiresIn=expires_s,
        )

    def look(self, key: str) -> Arrival | None:
        """What lies at a key, if anything does."""
        try:
            head = self._s3.head_object(Bucket=self._name, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if error.response["Error"]["Code"] in _NOT_THERE:
                return None
            raise
        size_bytes = head["ContentLength"]
        # Absent of what came by another way than our forms, which have it as a condition.
        checksum = head.get("ChecksumSHA256")
        sha256 = base64.b64decode(checksum).hex() if checksum else self._hash(key)
        file = RangedFile(self._s3, self._name, key, size_bytes)
        return Arrival(size_bytes, head.get("ContentType", ""), sha256, file)

    def _hash(self, key: str) -> str:
        digest = hashlib.sha256()
        body = self._s3.get_object(Bucket=self._name, Key=key)["Body"]
        for part in body.iter_chunks(_HASHED_BYTES):
            digest.update(part)
        return digest.hexdigest()


class RangedFile:
    """An object of S3 as a file that fetches what is read, in ranges.

    Args:
        s3: A client of S3.
        bucket: The bucket.
        key: The object.
        size_bytes: Its size.
    """

    def __init__(self, s3: S3Client, bucket: str, key: str, size_bytes: int) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._key = key
        self._size_bytes = size_bytes
        self._place = 0
        self._start, self._held = 0, b""
        self._range_bytes = _FIRST_RANGE_BYTES

    def read(self, size: int = -1, /) -> bytes:
        """Reads up to that many bytes, fewer at the end alone."""
        left = max(0, self._size_bytes - self._place)
        wanted = left if size < 0 else min(size, left)
        if wanted == 0:
            return b""
        if not self._start <= self._place <= self._start + len(self._held) - wanted:
            self._fetch(wanted)
        at = self._place - self._start
        data = self._held[at : at + wanted]
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves, and returns the new place."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size_bytes}
        self._place = max(0, origin[whence] + offset)
        return self._place

    def tell(self) -> int:
        """The present place."""
        return self._place

    def _fetch(self, wanted: int) -> None:
        last = min(self._size_bytes, self._place + max(wanted, self._range_bytes)) - 1
        answer = self._s3.get_object(
            Bucket=self._bucket, Key=self._key, Range=f"bytes={self._place}-{last}"
        )
        self._start, self._held = self._place, answer["Body"].read()
        self._range_bytes *= 2


class EventBus:
    """The bus of events.

    Args:
        events: A client of EventBridge.
        name: The bus.
    """

    def __init__(self, events: EventBridgeClient, name: str) -> None:
        self._events = events
        self._name = name

    def announce(self, detail_type: str, detail: Mapping[str, Any]) -> None:
        """Puts an event on the bus.

        Raises:
            LimnerError: ``AWS_ERROR``, if the bus did not take it; the same call mends that.
        """
        answer = self._events.put_events(
            Entries=[
                {
                    "EventBusName": self._name,
                    "Source": "limner",
                    "DetailType": detail_type,
                    "Detail": json.dumps(detail),
                }
            ]
        )
        if answer["FailedEntryCount"]:
            code = answer["Entries"][0].get("ErrorCode", "")
            raise LimnerError("AWS_ERROR", f"PutEvents: {code}: submit the request again.")
