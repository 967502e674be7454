"""Retry: MaxDelaySeconds and JitterStrategy, and no retry after the end.

Amazon States Language, "Error handling after retry": "MaxDelaySeconds ... sets the maximum value,
in seconds, up to which a retry interval can increase"; "JitterStrategy ... FULL | NONE", where
with FULL "Step Functions randomizes the retry interval between 0 and" the computed interval.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from limner.local.clock import Clock
from limner.local.seams import Module
from limner.local.semantics.executions import current_scope, unless_ended

Matcher = Callable[[list[dict[str, Any]], str, dict[int, int]], tuple[dict[str, Any] | None, int]]


def delay_s(
    retrier: Mapping[str, Any], retries: int, uniform: Callable[[float, float], float]
) -> float:
    """Seconds before the next attempt.

    Args:
        retrier: One entry of a Retry field.
        retries: Retries that this entry has made so far.
        uniform: Draws a float between two bounds.
    """
    interval = float(retrier.get("IntervalSeconds", 1))
    interval *= float(retrier.get("BackoffRate", 2.0)) ** retries
    interval = min(interval, float(retrier.get("MaxDelaySeconds", interval)))
    return uniform(0, interval) if retrier.get("JitterStrategy") == "FULL" else interval


def install(engine: Module, clock: Clock) -> None:
    """Installs the correction of this module."""
    engine._find_matching_retrier = _waiting(engine, clock)


def _waiting(engine: Module, clock: Clock) -> Matcher:
    """Finds the retrier and waits its delay.

    The engine sleeps right after it has asked for the retrier, by a formula of its own that stops
    at 60 s; so the wait is done here, and the engine is told an interval of 0.
    """
    find = engine._find_matching_retrier

    def find_and_wait(
        retriers: list[dict[str, Any]], error: str, counts: dict[int, int]
    ) -> tuple[dict[str, Any] | None, int]:
        unless_ended(engine)
        retrier, index = find(retriers, error, counts)
        if retrier is None:
            return None, -1
        scope = current_scope()
        seconds = delay_s(retrier, counts.get(index, 0), random.uniform)  # jitter
        clock.sleep(seconds, scope.ended if scope else lambda: False)
        unless_ended(engine)
        return {**retrier, "IntervalSeconds": 0}, index

    return find_and_wait
