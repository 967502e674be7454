"""Scheduled rules follow a clock that is turned."""

from __future__ import annotations

import contextlib
import types
from typing import Any

import pytest

from limner.local.clock import Clock
from limner.local.triggers.schedules import Schedules


class World:
    """Time, one rule, and what it fired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
        self.now_s = 1000.0
        self.fired = 0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)
        monkeypatch.setattr("time.time", lambda: self.now_s)
        rule = {"Name": "minute", "ScheduleExpression": expression, "State": "ENABLED"}
        key = ("account", "region", "default|minute")
        self.rules: Any = types.SimpleNamespace(_data={key: rule})
        engine = types.SimpleNamespace(
            _rules=self.rules,
            _targets=types.SimpleNamespace(_data={key: [{}]}),
            _parse_rate_seconds=lambda text: 60 if text == "rate(1 minute)" else None,
            _parse_cron_fields=lambda _: None,
            _pattern_event_view=lambda event: event,
            _invoke_target=self._count,
            new_uuid=lambda: "id",
        )
        responses = types.SimpleNamespace(request_scope=lambda *_: contextlib.nullcontext())
        self.clock = Clock()
        self.schedules = Schedules(engine, responses, self.clock)

    def _count(self, *_: object) -> None:
        self.fired += 1

    def passes(self, seconds: float) -> int:
        """Lets time pass, with a look each quarter of a second; returns how often it fired."""
        before = self.fired
        for _ in range(int(seconds * 4)):
            self.now_s += 0.25
            self.schedules.look()
        return self.fired - before


def test_rates_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "rate(1 minute)")
    assert world.passes(59) == 0
    assert world.passes(2) == 1
    assert world.passes(120) == 2
    world.clock.turn(waits=0.1)
    assert world.passes(60) == 10


def test_a_clock_that_skips_waits_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "rate(1 minute)")
    world.clock.turn(waits=0)
    assert world.passes(300) == 0
    assert world.schedules.fire("min") == ["minute"]
    assert world.fired == 1
    assert world.schedules.fire("other") == []


def test_a_fast_clock_leaves_time_between(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "rate(1 minute)")
    world.clock.turn(waits=0.0001)
    assert world.passes(10) <= 5


@pytest.mark.parametrize("change", [{"State": "DISABLED"}, {"ScheduleExpression": ""}])
def test_rules_that_do_not_fire(monkeypatch: pytest.MonkeyPatch, change: dict[str, str]) -> None:
    world = World(monkeypatch, "rate(1 minute)")
    next(iter(world.rules._data.values())).update(change)
    assert world.passes(120) == 0
