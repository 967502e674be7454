"""Rules with a schedule, on the laptop's clock.

EventBridge user guide, "Creating an Amazon EventBridge rule that runs on a schedule": for rate(…),
"the countdown begins when you create the rule". A second of that countdown takes as long as a
second of Wait (dial ``waits``). Where waits are skipped (0) no countdown ends: a rule then fires
only on order. cron(…) names times of day, so it stays on the wall clock.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from limner.local.clock import Clock
from limner.local.json_types import Json
from limner.local.seams import Module

_Key = tuple[str, str, str]
# Real seconds between looks at the rules.
_LOOK_EVERY_S: Final = 0.25
# However fast the clock is, a rule leaves its function and the machine this long, in real seconds.
_AT_LEAST_S: Final = 2.0


class Schedules:
    """The scheduled rules; ministack's scheduler thread looks at them.

    Args:
        eventbridge: ``ministack.services.eventbridge``.
        responses: ``ministack.core.responses``.
        clock: rate(…) follows its dial ``waits``.
    """

    def __init__(self, eventbridge: Module, responses: Module, clock: Clock) -> None:
        self._eventbridge = eventbridge
        self._responses = responses
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._left_s: dict[_Key, float] = {}
        self._fired: dict[_Key, float] = {}

    def install(self) -> None:
        """Takes the place of ministack's own looks."""
        self._eventbridge._SCHEDULER_TICK_INTERVAL = _LOOK_EVERY_S
        self._eventbridge._tick_scheduled_rules = self.look

    def look(self) -> None:
        """Fires the rules whose time has come."""
        with self._lock:
            now = time.monotonic()
            scale, passed_s = self._clock.waits, now - self._looked
            self._looked = now
            rules = self._rules()
            self._left_s = {key: left for key, left in self._left_s.items() if key in rules}
            due = [
                key
                for key, rule in rules.items()
                if self._is_due(key, rule["ScheduleExpression"], passed_s, scale)
            ]
        for key in due:
            self._fire(key, rules[key])

    def fire(self, name_contains: str) -> list[str]:
        """Fires rules now, whatever their schedule; returns their names."""
        chosen = {key: rule for key, rule in self._rules().items() if name_contains in rule["Name"]}
        for key, rule in chosen.items():
            self._fire(key, rule)
        return sorted(rule["Name"] for rule in chosen.values())

    def _rules(self) -> dict[_Key, dict[str, Any]]:
        return {
            key: rule
            for key, rule in list(self._eventbridge._rules._data.items())
            if rule.get("ScheduleExpression") and rule.get("State") == "ENABLED"
        }

    def _is_due(self, key: _Key, expression: str, passed_s: float, scale: float) -> bool:
        now = time.time()
        every_s = self._eventbridge._parse_rate_seconds(expression)
        if every_s is None:
            return self._is_due_by_cron(key, expression, now)
        left = self._left_s.get(key, float(every_s))
        if scale > 0:
            left -= passed_s / scale
        is_due = left <= 0 and now - self._fired.get(key, 0.0) >= _AT_LEAST_S
        if is_due:
            self._fired[key] = now
            left = max(left + every_s, 0.0)  # what is late now does not delay all that follow
        self._left_s[key] = left
        return is_due

    def _is_due_by_cron(self, key: _Key, expression: str, now: float) -> bool:
        fields = self._eventbridge._parse_cron_fields(expression)
        if fields is None:
            return False
        last = datetime.fromtimestamp(self._fired.setdefault(key, now), UTC)
        due = self._eventbridge._cron_next_fire(fields, last)
        if due is None or datetime.fromtimestamp(now, UTC) < due:
            return False
        self._fired[key] = now
        return True

    def _fire(self, key: _Key, rule: dict[str, Any]) -> None:
        account, region, _ = key
        with self._responses.request_scope(account, region):
            event: dict[str, Json] = {
                "EventId": self._eventbridge.new_uuid(),
                "Source": "aws.events",
                "DetailType": "Scheduled Event",
                "Detail": "{}",
                "EventBusName": rule.get("EventBusName", "default"),
                "Time": int(time.time()),
                "Resources": [rule.get("Arn", "")],
                "Account": account,
                "Region": region,
            }
            view = self._eventbridge._pattern_event_view(event)
            for target in self._eventbridge._targets._data.get(key, []):
                self._eventbridge._invoke_target(target, event, rule, view)
