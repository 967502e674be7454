"""Threads for calls that may take long, or never return, and that nobody may wait for too long.

::

    run ──> queue ──> one of the threads: call, call, … ──┐
                                                          ├─> done, once
        the minder: its deadline, or the end ─────────────┘

A thread cannot be ended from outside. So each task has a deadline, at which it is given up and
whoever asked is told; its thread is lost until the call that runs returns. The threads are daemons:
one that is lost does not keep the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inference.engine.crowd import crowded
from inference.reports import stopped
from limner.contracts.errors import LimnerError

Done = Callable[[Exception | None], None]
Work = Iterator[None]
"""What is to be done; yields before each call that may take long, so that each is timed alone."""


@dataclass(frozen=True, eq=False)
class _Task:
    """Calls for one request.

    Attributes:
        key: The model's.
        work: The calls.
        deadline: ``perf_counter`` after which it is given up.
        done: Told once how it ended.
        is_wanted: Whether somebody waits for it.
    """

    key: str
    work: Work
    deadline: float
    done: Done
    is_wanted: Callable[[], bool]


class Checks:
    """Does tasks in the order of their arrival; safe to use from any thread.

    Args:
        name: Of the threads.
        threads: Tasks at the same time, at most.
        late: What whoever is given up at his deadline is told.
        most: Tasks that may wait, a quarter of them one model's; one more is ``ENDPOINT_BUSY``.
            None for any number.
    """

    def __init__(self, name: str, threads: int, late: str, most: int | None = None) -> None:
        self._late = late
        self._most = most
        self._changed = threading.Condition()
        # Tasks that no thread has taken yet, in the order of their arrival.
        self._waiting: dict[_Task, None] = {}
        # Tasks that nobody was told of yet, in the order of their arrival.
        self._open: dict[_Task, None] = {}
        # When each call began that is running, its task given up or not.
        self._began: dict[_Task, float] = {}
        self._closing = False
        for run in [self._mind, *[self._work] * threads]:
            threading.Thread(target=run, name=name, daemon=True).start()

    @property
    def longest_s(self) -> float:
        """Seconds that the longest of the running calls has run by now; 0 where none runs."""
        with self._changed:
            return time.perf_counter() - min(self._began.values()) if self._began else 0.0

    @property
    def waiting(self) -> list[str]:
        """The model of each wanted task that no thread has taken yet."""
        with self._changed:
            return self._keys()

    def run(
        self,
        key: str,
        work: Work,
        deadline: float,
        done: Done,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Queues a task; returns at once.

        Args:
            key: Tells models apart.
            work: The calls. Where the task was given up, or is wanted no more, no further one is
                begun.
            deadline: ``perf_counter`` after which it is given up.
            done: Called once, from any thread: with None, with what ``work`` raised, or with
                ``DEADLINE_EXCEEDED``, ``ENDPOINT_BUSY`` or ``GENERATION_FAILED``. It must not
                raise.
            is_wanted: Whether somebody still waits; must return at once.
        """
        task = _Task(key, work, deadline, done, is_wanted)
        with self._changed:
            refused = self._why_not(key)
            if refused is None:
                self._open[task] = self._waiting[task] = None
                self._changed.notify_all()
        if refused is not None:
            done(refused)

    def close(self, until: float) -> None:
        """Takes no more, waits for what runs, and gives up what is left.

        Args:
            until: ``perf_counter`` until which it waits.
        """
        with self._changed:
            self._closing = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for task in left:
            self._tell(task, stopped())
        with self._changed:
            left_s = until - time.perf_counter()
            self._changed.wait_for(lambda: not self._open, timeout=max(0.0, left_s))
            left = list(self._open)
        for task in left:
            self._tell(task, stopped())

    def _why_not(self, key: str) -> LimnerError | None:
        if self._closing:
            return stopped()
        if self._most is None:
            return None
        return crowded(self._keys(), key, self._most)

    def _keys(self) -> list[str]:
        return [task.key for task in self._waiting if task.is_wanted()]

    def _work(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Does the next task, and keeps nothing of it; False at the end."""
        task = self._next()
        if task is None:
            return False
        error: Exception | None = None
        try:
            for _ in task.work:
                if not self._begin_call(task):
                    break
        except Exception as raised:  # noqa: BLE001 (the thread's boundary: somebody waits)
            error = raised
        with self._changed:
            del self._began[task]
        self._tell(task, error)
        return True

    def _begin_call(self, task: _Task) -> bool:
        """Measures anew; False where nobody wants the task any more."""
        with self._changed:
            self._began[task] = time.perf_counter()
            return task in self._open and task.is_wanted()

    def _next(self) -> _Task | None:
        """The next task; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting)
            if not self._waiting:
                return None
            task = next(iter(self._waiting))
            del self._waiting[task]
            self._began[task] = time.perf_counter()
            return task

    def _mind(self) -> None:
        """Gives up what is overdue, until the end."""
        while not self._closing:
            self._give_up_overdue()
            self._await_deadline()

    def _give_up_overdue(self) -> None:
        with self._changed:
            now = time.perf_counter()
            late = [task for task in self._open if task.deadline <= now]
        for task in late:
            self._tell(task, LimnerError("DEADLINE_EXCEEDED", self._late))

    def _await_deadline(self) -> None:
        """Returns at the first deadline, or when anything has changed."""
        with self._changed:
            first = min((task.deadline for task in self._open), default=None)
            if not self._closing:
                self._changed.wait(None if first is None else first - time.perf_counter())

    def _tell(self, task: _Task, error: Exception | None) -> None:
        with self._changed:
            if task not in self._open:
                return  # it was given up, or has ended just before
            del self._open[task]
            self._waiting.pop(task, None)
            self._changed.notify_all()
        task.done(error)
