"""The clock: two dials, turned while others wait."""

from __future__ import annotations

import threading
import time

from limner.local.clock import Clock


def timed(clock: Clock, seconds: float) -> float:
    began = time.monotonic()
    clock.sleep(seconds)
    return time.monotonic() - began


def test_waits_are_scaled() -> None:
    assert 0.05 <= timed(Clock(waits=0.001), 60) < 30


def test_a_scale_of_zero_skips_waits() -> None:
    assert timed(Clock(waits=0), 3600) < 30


def test_a_sleeper_notices_that_the_clock_is_turned() -> None:
    clock = Clock(waits=1.0)
    threading.Timer(0.05, lambda: clock.turn(waits=0.0)).start()
    assert timed(clock, 3600) < 30


def test_a_sleeper_wakes_when_its_work_has_ended() -> None:
    ended = threading.Event()
    threading.Timer(0.05, ended.set).start()
    began = time.monotonic()
    Clock().sleep(3600, ended.is_set)
    assert time.monotonic() - began < 30


def test_a_deadline_counts_on_the_other_dial() -> None:
    clock = Clock(waits=0.0, timeouts=1.0)
    deadline = clock.deadline(3600)
    assert not deadline.passed()
    clock.turn(timeouts=1e-9)
    time.sleep(0.001)
    assert deadline.passed()
    assert clock.waits == 0.0
