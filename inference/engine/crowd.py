"""Who may still wait: a queue has a bound, and so has one model's part of it."""

from __future__ import annotations

from collections.abc import Collection
from math import ceil
from typing import Final

from limner.contracts.errors import LimnerError

# Of a queue, for one model: nobody's crowd keeps all others out.
_SHARE: Final = 4


def crowded(waiting: Collection[object], key: object, most: int) -> LimnerError | None:
    """Why one more may not wait, if so.

    Args:
        waiting: The model of each that waits, by whatever tells models apart.
        key: The model of one more.
        most: That may wait; a quarter of them may be one model's.
    """
    if len(waiting) >= most:
        return LimnerError("ENDPOINT_BUSY", f"{most} requests wait already.")
    own = sum(other == key for other in waiting)
    if own >= ceil(most / _SHARE):
        return LimnerError("ENDPOINT_BUSY", f"{own} requests of this model wait already.")
    return None
