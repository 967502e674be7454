"""Threads for calls that may take long, or never return, and that nobody may wait for too long.

::

    run ──> queue ──> one of the threads: the call ──┐
                                                     ├─> done, once
        the minder: its deadline, or the end ────────┘

A thread cannot be ended from outside. So each call has a deadline, at which it is given up and
whoever asked is told; its thread is lost until the call returns. The threads are daemons: one that
is lost does not keep the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from inference.reports import stopped
from limner.contracts.errors import LimnerError

# With 20 s of grace before and 5 s of flushing after it, within the 30 s of a container's end.
_CLOSE_S: Final = 2.0

Done = Callable[[Exception | None], None]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call.

    Attributes:
        work: The call.
        deadline: ``perf_counter`` after which it is given up.
        done: Told once how it ended.
    """

    work: Callable[[], None]
    deadline: float
    done: Done


class Checks:
    """Runs calls in the order of their arrival; safe to use from any thread.

    Args:
        name: Of the threads.
        threads: Calls at the same time, at most.
        late: What whoever is given up at his deadline is told.
        most: Calls that may wait; one more is ``ENDPOINT_BUSY``. None for any number.
    """

    def __init__(self, name: str, threads: int, late: str, most: int | None = None) -> None:
        self._late = late
        self._most = most
        self._changed = threading.Condition()
        # Calls that no thread has taken yet, in the order of their arrival.
        self._waiting: dict[_Call, None] = {}
        # Calls that nobody was told of yet, in the order of their arrival.
        self._open: dict[_Call, None] = {}
        # When each call began that is running, given up or not.
        self._began: dict[_Call, float] = {}
        self._closing = False
        for run in [self._mind, *[self._work] * threads]:
            threading.Thread(target=run, name=name, daemon=True).start()

    @property
    def longest_s(self) -> float:
        """Seconds that the longest of the running calls has run by now; 0 where none runs."""
        with self._changed:
            return time.perf_counter() - min(self._began.values()) if self._began else 0.0

    def run(self, work: Callable[[], None], deadline: float, done: Done) -> None:
        """Queues a call; returns at once.

        Args:
            work: The call.
            deadline: ``perf_counter`` after which it is given up.
            done: Called once, from any thread: with None, with what ``work`` raised, or with
                ``DEADLINE_EXCEEDED``, ``ENDPOINT_BUSY`` or ``GENERATION_FAILED``. It must not
                raise.
        """
        call = _Call(work, deadline, done)
        with self._changed:
            if self._closing:
                refused = stopped()
            elif self._most is not None and len(self._waiting) >= self._most:
                refused = LimnerError("ENDPOINT_BUSY", f"{self._most} requests wait already.")
            else:
                self._open[call] = self._waiting[call] = None
                self._changed.notify_all()
                return
        done(refused)

    def close(self) -> None:
        """Takes no more, waits a moment for what runs, and gives up what is left."""
        with self._changed:
            self._closing = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for call in left:
            self._tell(call, stopped())
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout=_CLOSE_S)
            left = list(self._open)
        for call in left:
            self._tell(call, stopped())

    def _work(self) -> None:
        while (call := self._next()) is not None:
            error: Exception | None = None
            try:
                call.work()
            except Exception as raised:  # noqa: BLE001 (the thread's boundary: somebody waits)
                error = raised
            with self._changed:
                del self._began[call]
            self._tell(call, error)

    def _next(self) -> _Call | None:
        """The next call; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting)
            if not self._waiting:
                return None
            call = next(iter(self._waiting))
            del self._waiting[call]
            self._began[call] = time.perf_counter()
            return call

    def _mind(self) -> None:
        """Gives up what is overdue, until the end."""
        while True:
            with self._changed:
                if self._closing:
                    return
                now = time.perf_counter()
                late = [call for call in self._open if call.deadline <= now]
                if not late:
                    first = min((call.deadline for call in self._open), default=None)
                    self._changed.wait(None if first is None else first - now)
                    continue
            for call in late:
                self._tell(call, LimnerError("DEADLINE_EXCEEDED", self._late))

    def _tell(self, call: _Call, error: Exception | None) -> None:
        with self._changed:
            if call not in self._open:
                return  # it was given up, or has ended just before
            del self._open[call]
            self._waiting.pop(call, None)
            self._changed.notify_all()
        call.done(error)
