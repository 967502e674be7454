"""A clock that tests can turn while things wait on it.

Two dials, because they stand for two things. ``waits`` scales what Step Functions only sleeps
through, Wait states and the back-off of Retry, and what other services wait for: the back-off of
streams, rules and asynchronous invocations, and the countdown of scheduled rules. ``timeouts``
scales limits on long work: TimeoutSeconds of machines and of tasks that wait for a job,
MaxRuntimeInSeconds, MaxWaitTimeInSeconds and KeepAlivePeriodInSeconds of jobs, and the 120 s
between SIGTERM and SIGKILL. A test that turns only ``waits`` leaves real programs their time;
calls of services and Lambda functions keep theirs always.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# How soon a sleeper notices that its execution has ended.
_LOOK_UP_S = 1.0


class Clock:
    """The laptop's clock; thread-safe.

    Args:
        waits: Real seconds per second of waiting; 0 skips waits.
        timeouts: Real seconds per second of a limit.
    """

    def __init__(self, waits: float = 1.0, timeouts: float = 1.0) -> None:
        self._turned = threading.Condition()
        self._waits = waits
        self._timeouts = timeouts

    @property
    def waits(self) -> float:
        """Real seconds per second of waiting."""
        return self._waits

    @property
    def timeouts(self) -> float:
        """Real seconds per second of a limit."""
        return self._timeouts

    def turn(self, *, waits: float | None = None, timeouts: float | None = None) -> None:
        """Sets one dial or both; those who wait already notice at once."""
        with self._turned:
            self._waits = self._waits if waits is None else waits
            self._timeouts = self._timeouts if timeouts is None else timeouts
            self._turned.notify_all()

    def sleep(self, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
        """Sleeps for ``seconds`` on the dial ``waits``, or until ``ended``."""
        left = seconds
        with self._turned:
            while left > 0 and self._waits > 0 and not ended():
                scale, before = self._waits, time.monotonic()
                self._turned.wait(min(left * scale, _LOOK_UP_S))
                left -= (time.monotonic() - before) / scale

    def deadline(self, seconds: float) -> Deadline:
        """A limit of ``seconds`` on the dial ``timeouts`` that begins now."""
        return Deadline(self, seconds)


class Deadline:
    """A limit that moves with its clock; for those who poll.

    Args:
        clock: Whose dial ``timeouts`` counts.
        seconds: The limit, in seconds of that dial.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._left = seconds
        self._looked = time.monotonic()

    def passed(self) -> bool:
        """Whether the limit has been reached."""
        now = time.monotonic()
        scale = self._clock.timeouts
        self._left = 0.0 if scale <= 0 else self._left - (now - self._looked) / scale
        self._looked = now
        return self._left <= 0
