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
class _Slot(Generic[T]):
    content: T | None = None
    size_bytes: int = 0
    holders: int = 0
    leaving: bool = False


class Slots(Generic[T]):
    """A bounded table of named contents with reference counts; safe to use from any thread.

    Args:
        capacity: Number of slots.
        capacity_bytes: Bytes of all contents together; None sets no limit.
    """

    def __init__(self, capacity: int, capacity_bytes: int | None = None) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._size_bytes = 0
        self._slots: dict[str, _Slot[T]] = {}
        self._changed = threading.Condition()

    def reserve(self, name: str) -> None:
        """Takes a free slot, before the work of filling it begins.

        Raises:
            LimnerError: ``MODEL_ALREADY_LOADED``, if the name has a slot; ``OUT_OF_MEMORY``, if
                none is free.
        """
        with self._changed:
            if name in self._slots:
                raise LimnerError("MODEL_ALREADY_LOADED")
            if len(self._slots) >= self._capacity:
                raise LimnerError("OUT_OF_MEMORY", f"All {self._capacity} slots are taken.")
            self._slots[name] = _Slot()

    def charge(self, name: str, size_bytes: int) -> None:
        """Takes bytes for a reserved slot, once its content's size is known.

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
            self._slots[name].size_bytes += size_bytes
            self._size_bytes += size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all contents, and of those on their way."""
        with self._changed:
            return self._size_bytes

    def fill(self, name: str, content: T) -> None:
        """Puts the content into a reserved slot; from now on it can be held."""
        with self._changed:
            self._slots[name].content = content

    def cancel(self, name: str) -> None:
        """Gives a reserved slot back."""
        with self._changed:
            self._remove(name)

    def get(self, name: str) -> T:
        """The content of a slot.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        with self._changed:
            return self._filled(name)[1]

    def items(self) -> list[tuple[str, T]]:
        """All names and contents, sorted by name."""
        with self._changed:
            return [
                (name, slot.content)
                for name, slot in sorted(self._slots.items())
                if slot.content is not None and not slot.leaving
            ]

    def hold(self, name: str) -> T:
        """The content of a slot, which stays until ``release``.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        with self._changed:
            slot, content = self._filled(name)
            slot.holders += 1
            return content

    def release(self, name: str) -> None:
        """Ends one ``hold``."""
        with self._changed:
            self._slots[name].holders -= 1
            self._changed.notify_all()

    def unload(self, name: str, timeout_s: float) -> T:
        """Frees a slot as soon as nobody holds it; new holds are refused at once.

        Args:
            name: The slot's name.
            timeout_s: Seconds to wait for the holders; after that the slot stays as it was.

        Returns:
            What was in it.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``; ``DEADLINE_EXCEEDED``, if it is still held.
        """
        with self._changed:
            slot, content = self._filled(name)
            slot.leaving = True
            if not self._changed.wait_for(lambda: slot.holders == 0, timeout_s):
                slot.leaving = False
                raise LimnerError("DEADLINE_EXCEEDED", "The model is still in use.")
            self._remove(name)
            return content

    def _remove(self, name: str) -> None:
        self._size_bytes -= self._slots.pop(name).size_bytes

    def _filled(self, name: str) -> tuple[_Slot[T], T]:
        slot = self._slots.get(name)
        if slot is None or slot.content is None or slot.leaving:
            raise LimnerError("MODEL_NOT_LOADED")
        return slot, slot.content
