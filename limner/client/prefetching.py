"""Prefetching: a model is in the endpoint's memory before its user's first request comes.

A multi-model endpoint has no call that loads a model: InvokeEndpoint does, and then has it answer.
So a prefetch draws the smallest image there is (``contracts.generation.SMALLEST``), in one step and
without guidance, and throws it away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from limner.contracts.errors import LimnerError

# What waits behind so many would come too late to be of use.
MOST_AT_ONCE: Final = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prefetched:
    """A version that is in the endpoint's memory now.

    Attributes:
        user_id: Whose model.
        model_id: Which one.
        version: Which version of it.
        target_model: What the endpoint calls that version.
        seconds: How long it took; far more than the next one if it was not there before.
    """

    user_id: str
    model_id: str
    version: int
    target_model: str
    seconds: float


class Background:
    """Prefetches in threads of their own, each model once at a time; safe to use from any thread.

    Nothing is ever raised here: a prefetch is a hint, and must not stand in the way of the app that
    gives it. What failed is in the future, and in the log by its code.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._going: dict[tuple[object, ...], Future[Prefetched]] = {}

    def begin(self, key: tuple[object, ...], work: Callable[[], Prefetched]) -> Future[Prefetched]:
        """Begins a prefetch, or joins the one of the same key that is under way.

        Args:
            key: What is prefetched.
            work: Does it.

        Returns:
            A future; it fails at once with ``THROTTLED`` if too many are under way.
        """
        with self._lock:
            going = self._going.get(key)
            if going is not None:
                return going
            future: Future[Prefetched] = Future()
            # From here on it cannot be cancelled: several callers may share it.
            future.set_running_or_notify_cancel()
            if len(self._going) >= MOST_AT_ONCE:
                detail = f"{MOST_AT_ONCE} prefetches are under way already."
                _fail(future, LimnerError("THROTTLED", detail))
                return future
            self._going[key] = future
        # A daemon: no app waits at its end for a model that it will not use.
        thread = threading.Thread(
            target=self._run, args=(key, work, future), name="limner-prefetch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had
            self._forget(key)
            _fail(future, error)
        return future

    def _run(
        self,
        key: tuple[object, ...],
        work: Callable[[], Prefetched],
        future: Future[Prefetched],
    ) -> None:
        try:
            done = work()
        except BaseException as error:  # noqa: BLE001 (a thread's edge: who waits must hear of it)
            self._forget(key)
            _fail(future, error)
        else:
            self._forget(key)
            future.set_result(done)

    def _forget(self, key: tuple[object, ...]) -> None:
        with self._lock:
            del self._going[key]


def _fail(future: Future[Prefetched], error: BaseException) -> None:
    # The code alone: messages name users.
    code = error.code if isinstance(error, LimnerError) else type(error).__name__
    _log.warning("a prefetch failed: %s", code)
    future.set_exception(error)
