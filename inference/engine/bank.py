"""Adapters of one layout in preallocated slots, and the device memory that all banks share.

All matrices of an adapter are one row of one flat buffer, as training's bank has them and as the
packed file of an artifact stores them::

                 ┌ A of a layer ┬ B of a layer ┬ A of the next ┬ …
    slot 0       │ r in         │ out r        │               │
    slot 1       │              │              │               │
    …            └──────────────┴──────────────┴───────────────┴ …

So to load an adapter is to copy one row; a layer sees the same memory as ``[slots, r, in]`` and
``[slots, out, r]``.

``Residency`` keeps the adapters that were drawn with last. A slot is pinned while a request draws
with it; of the others, the one that was used longest ago makes room (LRU).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Final

import torch
from torch import Tensor

from inference.engine.lora import Share, unpack
from inference.engine.memory import memory_errors
from inference.engine.reader import Adapter
from limner.contracts.artifact import PackedLayout

# Of the free device memory a new bank takes one half: nearly all users of an endpoint have one
# layout, and whoever has another still finds room.
_SHARE: Final = 2
# But so many slots, beside another bank, where there is room for them: with fewer the users of a
# rare layout would be drawn one after the other, and so would all who wait behind them.
_LEAST: Final = 8


class Bank:
    """Slots for adapters of one layout.

    Args:
        layout: Places of all matrices in a row.
        slots: How many adapters there is room for.
        device: Where.
        dtype: Type of the weights.

    Attributes:
        rows: ``[slots, layout.size]``; what is in no slot's use is garbage.
        used: Slot of each adapter, the one that was used longest ago first.
    """

    def __init__(
        self, layout: PackedLayout, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.layout = layout
        # Not zeros: a row is written as a whole before it is read, and memory that nobody has
        # written to costs nothing.
        self.rows = torch.empty(slots, layout.size, device=device, dtype=dtype)
        self.used: OrderedDict[int, int] = OrderedDict()
        self._free = list(reversed(range(slots)))
        self._pins: dict[int, int] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots."""
        return self.rows.numel() * self.rows.element_size()

    @property
    def is_idle(self) -> bool:
        """Whether nobody draws with any slot."""
        return not self._pins

    def pin(self, key: int) -> int | None:
        """The slot of a resident adapter, which stays until ``unpin``; None if it has none."""
        slot = self.used.get(key)
        if slot is not None:
            self.used.move_to_end(key)
            self._pins[key] = self._pins.get(key, 0) + 1
        return slot

    def fill(self, key: int, row: Tensor) -> tuple[int | None, bool]:
        """Copies a row into a free slot, or into that of the adapter used longest ago; pins it.

        Returns:
            The slot, None if all are pinned; and whether another adapter had to leave.
        """
        evicted = not self._free
        if evicted:
            idle = next((other for other in self.used if other not in self._pins), None)
            if idle is None:
                return None, False
            self.drop(idle)
        self.rows[self._free[-1]].copy_(row, non_blocking=True)
        # Taken only now: a copy that raises leaves the slot free.
        self.used[key] = slot = self._free.pop()
        self._pins[key] = 1
        return slot, evicted

    def unpin(self, key: int) -> None:
        """Ends one ``pin``."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def drop(self, key: int) -> None:
        """Frees an adapter's slot, if it has one."""
        slot = self.used.pop(key, None)
        if slot is not None:
            self._free.append(slot)

    def gather(self, slots: Sequence[int]) -> Tensor:
        """Rows of these slots, ``[len(slots), layout.size]``, in this order.

        Neighbours are a view; others are copied once.
        """
        first = slots[0]
        if list(slots) == list(range(first, first + len(slots))):
            return self.rows[first : first + len(slots)]
        return self.rows[torch.tensor(slots, device=self.rows.device)]


@dataclass(frozen=True, slots=True)
class Seat:
    """A pinned slot.

    Attributes:
        key: The adapter's.
        bank: Where the slot is.
        slot: Which.
        hit: Whether the adapter was there already.
        evictions: How many others had to leave for it.
    """

    key: int
    bank: Bank = field(repr=False)
    slot: int
    hit: bool
    evictions: int


class Residency:
    """The banks of one base within a budget of bytes; safe to use from any thread.

    Args:
        budget_bytes: Bytes of all banks together.
        max_slots: Slots of a bank at most; more than there are models are of no use.
        device: Where.
        dtype: Type of the weights.
    """

    def __init__(
        self, budget_bytes: int, max_slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.budget_bytes = budget_bytes
        self._max_slots = max_slots
        self._device = device
        self._dtype = dtype
        # The bank that was used longest ago first.
        self._banks: OrderedDict[str, Bank] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all banks."""
        with self._lock:
            return self._size_bytes()

    def pin(self, adapter: Adapter) -> Seat | None:
        """Brings an adapter into a slot, if it is not in one, and keeps it there until ``unpin``.

        Returns:
            The slot; None if there is room only after somebody has left.
        """
        with self._lock:
            dropped = 0
            bank = self._banks.get(adapter.layout_sha256)
            if bank is None:
                bank, dropped = self._open(adapter)
                if bank is None:
                    return None
            self._banks.move_to_end(adapter.layout_sha256)
            slot = bank.pin(adapter.key)
            if slot is not None:
                return Seat(adapter.key, bank, slot, hit=True, evictions=0)
            slot, evicted = bank.fill(adapter.key, adapter.row)
            if slot is None:
                return None
            return Seat(adapter.key, bank, slot, hit=False, evictions=dropped + evicted)

    def unpin(self, seat: Seat) -> None:
        """Ends one ``pin``."""
        with self._lock:
            seat.bank.unpin(seat.key)

    def drop(self, adapter: Adapter) -> None:
        """Frees an adapter's slot, if it has one; nobody may draw with it."""
        with self._lock:
            bank = self._banks.get(adapter.layout_sha256)
            if bank is not None:
                bank.drop(adapter.key)

    def _size_bytes(self) -> int:
        return sum(bank.size_bytes for bank in self._banks.values())

    def _open(self, adapter: Adapter) -> tuple[Bank | None, int]:
        """A new bank for an adapter's layout, and how many adapters had to leave for it.

        Raises:
            LimnerError: ``OUT_OF_MEMORY``, if the device has less than the budget says.
        """
        row_bytes = adapter.size_bytes
        dropped = 0
        while (free := self.budget_bytes - self._size_bytes()) < row_bytes:
            idle = next((name for name, bank in self._banks.items() if bank.is_idle), None)
            if idle is None:
                return None, dropped
            dropped += len(self._banks.pop(idle).used)
        wanted = max(free // _SHARE // row_bytes, _LEAST if self._banks else 1)
        slots = min(self._max_slots, wanted, free // row_bytes)
        with memory_errors():
            bank = Bank(adapter.layout, slots, self._device, self._dtype)
        self._banks[adapter.layout_sha256] = bank
        return bank, dropped


def shares_of(seats: Sequence[tuple[Seat, int]]) -> tuple[Share, ...]:
    """What the layers have to know of a pass.

    Args:
        seats: Slot and number of rows of each request, in the order of the rows; requests with
            one bank stand together.
    """
    shares: list[Share] = []
    start = 0
    index = 0
    while index < len(seats):
        bank = seats[index][0].bank
        stop = index
        while stop < len(seats) and seats[stop][0].bank is bank:
            stop += 1
        share = _share(bank, seats[index:stop], start)
        shares.append(share)
        start, index = share.rows.stop, stop
    return tuple(shares)


def _share(bank: Bank, seats: Sequence[tuple[Seat, int]], start: int) -> Share:
    """The rows of one bank, with as few entries as equally many rows an entry allow."""
    counts: list[tuple[int, int]] = []
    for seat, rows in seats:
        if counts and counts[-1][0] == seat.slot:
            rows += counts.pop()[1]
        counts.append((seat.slot, rows))
    unit = gcd(*(rows for _, rows in counts))
    slots = [slot for slot, rows in counts for _ in range(rows // unit)]
    stop = start + sum(rows for _, rows in counts)
    return Share(slice(start, stop), unpack(bank.gather(slots), bank.layout))
