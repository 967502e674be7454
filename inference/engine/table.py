"""The table of loaded models: which are in memory, how many bytes they take, and who uses them.

Time line of an entry::

    reserve ── charge ── fill ─── hold … release ─── hold … release ─── unload
       │          │ (507 when the bytes are taken)                        │
       │ (507 when all entries are taken)                                 └─ no new hold from here
       └─ cancel (the artifact was refused)                                  on; waits for the last
                                                                             release
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

from limner.contracts.errors import LimnerError

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    content: T | None = None
    size_bytes: int = 0
    holders: int = 0
    leaving: bool = False


class Table(Generic[T]):
    """A bounded table of named contents with reference counts; safe to use from any thread.

    Args:
        capacity: Number of entries.
        capacity_bytes: Bytes of all contents together; None sets no limit.
    """

    def __init__(self, capacity: int, capacity_bytes: int | None = None) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._size_bytes = 0
        self._entries: dict[str, _Entry[T]] = {}
        self._changed = threading.Condition()

    def reserve(self, name: str) -> None:
        """Takes a free entry, before the work of filling it begins.

        Raises:
            LimnerError: ``MODEL_ALREADY_LOADED``, if the name has an entry; ``OUT_OF_MEMORY``, if
                none is free.
        """
        with self._changed:
            if name in self._entries:
                raise LimnerError("MODEL_ALREADY_LOADED")
            if len(self._entries) >= self._capacity:
                raise LimnerError("OUT_OF_MEMORY", f"All {self._capacity} entries are taken.")
            self._entries[name] = _Entry()

    def charge(self, name: str, size_bytes: int) -> None:
        """Takes bytes for a reserved entry, once its content's size is known.

        Raises:
            LimnerError: ``OUT_OF_MEMORY``, if not so many are free.
        """
        with self._changed:
            limit = self._capacity_bytes
            if limit is not None and self._size_bytes + size_bytes > limit:
                raise LimnerError(
                    "OUT_OF_MEMORY",
                    f"The model takes {size_bytes} bytes; {self._size_bytes} of {limit} are taken.",
                )
            self._entries[name].size_bytes += size_bytes
            self._size_bytes += size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all contents, and of those on their way."""
        with self._changed:
            return self._size_bytes

    def fill(self, name: str, content: T) -> None:
        """Puts the content into a reserved entry; from now on it can be held."""
        with self._changed:
            self._entries[name].content = content

    def cancel(self, name: str) -> None:
        """Gives a reserved entry back."""
        with self._changed:
            self._remove(name)

    def get(self, name: str) -> T:
        """The content of an entry.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        with self._changed:
            return self._filled(name)[1]

    def items(self) -> list[tuple[str, T]]:
        """All names and contents, sorted by name."""
        with self._changed:
            return [
                (name, entry.content)
                for name, entry in sorted(self._entries.items())
                if entry.content is not None and not entry.leaving
            ]

    def hold(self, name: str) -> T:
        """The content of an entry, which stays until ``release``.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        with self._changed:
            entry, content = self._filled(name)
            entry.holders += 1
            return content

    def release(self, name: str) -> None:
        """Ends one ``hold``."""
        with self._changed:
            self._entries[name].holders -= 1
            self._changed.notify_all()

    def unload(self, name: str, timeout_s: float) -> T:
        """Frees an entry as soon as nobody holds it; new holds are refused at once.

        Args:
            name: The entry's name.
            timeout_s: Seconds to wait for the holders; after that the entry stays as it was.

        Returns:
            What was in it.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``; ``DEADLINE_EXCEEDED``, if it is still held.
        """
        with self._changed:
            entry, content = self._filled(name)
            entry.leaving = True
            if not self._changed.wait_for(lambda: entry.holders == 0, timeout_s):
                entry.leaving = False
                raise LimnerError("DEADLINE_EXCEEDED", "The model is still in use.")
            self._remove(name)
            return content

    def _remove(self, name: str) -> None:
        self._size_bytes -= self._entries.pop(name).size_bytes

    def _filled(self, name: str) -> tuple[_Entry[T], T]:
        entry = self._entries.get(name)
        if entry is None or entry.content is None or entry.leaving:
            raise LimnerError("MODEL_NOT_LOADED")
        return entry, entry.content
