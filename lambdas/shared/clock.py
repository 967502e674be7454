"""The time, given to whoever needs it, so that tests can turn it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from limner.contracts.times import as_text


@dataclass(frozen=True, slots=True)
class Clock:
    """What a function knows of time.

    Attributes:
        now_ms: Milliseconds since 1970.
        pause: Waits that many seconds.
        remaining_ms: Milliseconds until this invocation is ended by force.
    """

    now_ms: Callable[[], int]
    pause: Callable[[float], None]
    remaining_ms: Callable[[], int]

    @classmethod
    def of_context(cls, context: object) -> Clock:
        """The clock of an invocation.

        Args:
            context: Lambda's context object.
        """
        remaining_ms: Callable[[], int] = context.get_remaining_time_in_millis  # type: ignore[attr-defined]
        return cls(lambda: time.time_ns() // 1_000_000, time.sleep, remaining_ms)

    def now(self) -> str:
        """The present moment as all rows write it."""
        return iso(self.now_ms())


def iso(moment_ms: int) -> str:
    """A moment as all rows write it."""
    return as_text(datetime.fromtimestamp(moment_ms / 1000, UTC))


def to_ms(written: str) -> int:
    """Milliseconds since 1970 of a moment as a row has it.

    Raises:
        ValueError: If it is no moment with a time zone.
    """
    moment = datetime.fromisoformat(written)
    if moment.tzinfo is None:
        raise ValueError(f"{written!r} has no time zone")
    return round(moment.timestamp() * 1000)
