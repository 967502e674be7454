"""The background writer of captured generations; the client and the container share it.

Whoever answers a user calls ``offer``, which takes a lock for some microseconds and no more. One
thread writes what was taken, in order. What does not fit is dropped, and counted::

    offer ──> queue, bounded by records and bytes ──> thread ──> put, put, … ──> written | failed
       └────> dropped                                    └─ close: left at the deadline ──> dropped
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from limner.contracts.capture import CapturedFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_RECORDS: Final = 256
MAX_BYTES: Final = 64 << 20

Put = Callable[[CapturedFile], object]
"""Writes one object; raises whatever has kept it from that."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the records so far.

    Attributes:
        written: All of their files are there.
        dropped: Never begun, since the queue was full or closed; or not done when it was closed.
        failed: Refused by S3, after the retries of its client; or a put that has raised.
        reason: AWS's code of the last failure, or the type of the error.
    """

    written: int = 0
    dropped: int = 0
    failed: int = 0
    reason: str = ""


class Writer:
    """Writes records one after the other, behind everybody's back; safe to use from any thread.

    The thread begins with the first record, and ends with ``close`` alone. It is a daemon: a
    program may end at any time, and ``close`` is what gives the last records their time. A forked
    child begins anew: what its parent has taken is its parent's to write, and to count.

    Args:
        put: Writes one object. It must give up by itself sooner or later.
        max_records: Records in memory at once, the one being written included.
        max_bytes: Their bytes.
    """

    def __init__(
        self, put: Put, *, max_records: int = MAX_RECORDS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._put = put
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._closed = False
        self._begin()
        _after_fork(self._begin)

    def _begin(self) -> None:
        """With nothing taken, no thread, and a lock that nobody holds."""
        # Guards all below, and is notified of every change. Never held while anything is written.
        self._changed = threading.Condition()
        self._held: deque[Sequence[CapturedFile]] = deque()  # the first one is being written
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._written = self._dropped = self._failed = 0
        self._reason = ""

    @property
    def counts(self) -> Counts:
        """What became of the records so far."""
        with self._changed:
            return self._counts()

    def offer(self, files: Sequence[CapturedFile]) -> bool:
        """Takes a record to be written, or drops it; returns at once.

        Args:
            files: Its files, in the order in which they are written.

        Returns:
            Whether it was taken.
        """
        with self._changed:
            taken = self._has_room(_size(files)) and self._is_running()
            if taken:
                self._held.append(files)
                self._bytes += _size(files)
                self._changed.notify_all()
            else:
                self._dropped += 1
            return taken

    def close(self, deadline_s: float) -> Counts:
        """Takes no more, and waits for what was taken; may be called twice.

        Args:
            deadline_s: Seconds to wait. What is left then is dropped. The one that is just being
                written counts as dropped, too, though it may still arrive.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._held, deadline_s)
            self._dropped += len(self._held)
            self._held.clear()
            self._bytes = 0
            return self._counts()

    def _has_room(self, size_bytes: int) -> bool:
        fits = len(self._held) < self._max_records and self._bytes + size_bytes <= self._max_bytes
        return fits and not self._closed

    def _is_running(self) -> bool:
        """Starts the thread where there is none yet."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="limner-capture", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # out of threads, or the interpreter is ending
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while (files := self._next()) is not None:
            reason: str | None = None
            try:
                for file in files:
                    self._put(file)
            except Exception as error:  # noqa: BLE001 (the thread's edge: without it all records wait)
                reason = _reason(error)
            self._settle(files, reason)

    def _next(self) -> Sequence[CapturedFile] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._closed)
            return self._held[0] if self._held else None

    def _settle(self, files: Sequence[CapturedFile], reason: str | None) -> None:
        with self._changed:
            if not self._held or self._held[0] is not files:
                return  # close has given up on it, and counted it
            self._held.popleft()
            self._bytes -= _size(files)
            if reason is None:
                self._written += 1
            else:
                self._failed += 1
                self._reason = reason
            self._changed.notify_all()

    def _counts(self) -> Counts:
        return Counts(self._written, self._dropped, self._failed, self._reason)


def put_to(s3: S3Client, bucket: str) -> Put:
    """Writes to a bucket.

    Args:
        s3: A client with bounded retries and timeouts.
        bucket: The bucket.
    """

    def put(file: CapturedFile) -> None:
        s3.put_object(Bucket=bucket, Key=file.key, Body=file.content, ContentType=file.content_type)

    return put


def _size(files: Sequence[CapturedFile]) -> int:
    return sum(len(file.content) for file in files)


def _reason(error: Exception) -> str:
    """What may be told of a failure; its text may name the key, and so the user."""
    if isinstance(error, ClientError):
        return error.response.get("Error", {}).get("Code", "ClientError")
    return type(error).__name__


def _after_fork(begin: Callable[[], None]) -> None:
    """Has a forked child call a method, if its object is still there.

    The child has a copy of the lock, which some thread of its parent may have held, and of records
    that its parent writes.
    """
    if not hasattr(os, "register_at_fork"):  # Windows, where nothing forks
        return
    method = weakref.WeakMethod(begin)

    def call() -> None:
        found = method()
        if found:
            found()

    os.register_at_fork(after_in_child=call)
