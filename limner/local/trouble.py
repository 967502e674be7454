"""Trouble on demand: what AWS does on a bad day, for tests and for the demo.

One plan holds at a time. It can hold back the rate of CreateTrainingJob (a token bucket), shrink
the quota of training instances, fail jobs for want of capacity, interrupt spot jobs, and put faults
on single calls: an error, a lost reply (the call is executed and its answer dropped), or a delay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from limner.local.errors import ServiceError, throttled

Reply = TypeVar("Reply")

CREATE_TRAINING_JOB = "sagemaker:CreateTrainingJob"


class FaultKind(StrEnum):
    """What happens to a call."""

    ERROR = "error"
    LOST_REPLY = "lost_reply"
    DELAY = "delay"


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble for calls of one operation.

    Attributes:
        operation: Service and action, e.g. ``dynamodb:UpdateItem``.
        kind: What happens.
        times: How often; None is for ever.
        code: AWS's error code of ``error`` and ``lost_reply``.
        message: AWS's sentence.
        seconds: Real seconds of ``delay``.
        matching: Only calls whose request, as JSON, contains this text.
        skip: Let this many matching calls pass first.
    """

    operation: str
    kind: FaultKind = FaultKind.ERROR
    times: int | None = 1
    code: str = "InternalServerError"
    message: str = "Internal server error"
    seconds: float = 0.0
    matching: str = ""
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All trouble of the moment; the default is a good day.

    Attributes:
        rate_per_s: CreateTrainingJob calls that the bucket regains a second; None is no limit.
        burst: CreateTrainingJob calls that the full bucket holds.
        instance_quota: Training instances in use at once; None is the laptop's own setting.
        capacity_failures: That many of the next jobs fail with CapacityError; -1 is for ever.
        spot_interruptions: That often spot instances are taken away; -1 is for ever.
        faults: Trouble of single calls; the first that fits is used.
    """

    rate_per_s: float | None = None
    burst: int = 1
    instance_quota: int | None = None
    capacity_failures: int = 0
    spot_interruptions: int = 0
    faults: tuple[Fault, ...] = ()

    @classmethod
    def from_json(cls, body: Mapping[str, object]) -> Plan:
        """Reads a plan as ``Control.trouble`` sends it.

        Raises:
            ServiceError: ``ValidationException`` for a member that does not exist.
        """
        values = dict(body)
        faults = values.pop("faults", [])
        try:
            if not isinstance(faults, list):
                raise TypeError("faults must be a list")
            read = tuple(Fault(**{**item, "kind": FaultKind(item["kind"])}) for item in faults)
            return cls(**values, faults=read)  # type: ignore[arg-type]  # checked by the call
        except (TypeError, ValueError, KeyError) as error:
            raise ServiceError("ValidationException", f"Trouble: {error}") from error


class Trouble:
    """The plan in force and what is left of it; thread-safe.

    Args:
        now: Monotonic seconds; the token bucket is filled by it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.set(Plan())

    def set(self, plan: Plan) -> None:
        """Puts a plan in force and forgets the one before."""
        with self._lock:
            self._plan = plan
            self._left = [fault.times for fault in plan.faults]
            self._skips = [fault.skip for fault in plan.faults]
            self._capacity_failures = plan.capacity_failures
            self._spot_interruptions = plan.spot_interruptions
            self._tokens = float(plan.burst)
            self._filled_at = self._now()

    @property
    def instance_quota(self) -> int | None:
        """The quota of training instances that the plan sets, if it sets one."""
        return self._plan.instance_quota

    def left(self) -> dict[str, int | None]:
        """How often each fault will still strike, by operation; None is for ever."""
        sums: dict[str, int | None] = {}
        with self._lock:
            for fault, left in zip(self._plan.faults, self._left, strict=True):
                before = sums.get(fault.operation, 0)
                sums[fault.operation] = None if before is None or left is None else before + left
        return sums

    def call(self, operation: str, request: str, call: Callable[[], Reply]) -> Reply:
        """Makes a call, or not, as the plan wants it.

        Args:
            operation: Service and action, e.g. ``dynamodb:updateItem``; the action's first letter
                may be small as in ASL.
            request: The request as JSON.
            call: Executes the call.

        Raises:
            ServiceError: The error of a fault, or ``ThrottlingException`` of an empty bucket.
        """
        name = _canonical(operation)
        if name == CREATE_TRAINING_JOB:
            self._take_token()
        fault = self._strike(name, request)
        if fault is None:
            return call()
        if fault.kind is FaultKind.DELAY:
            time.sleep(fault.seconds)
            return call()
        if fault.kind is FaultKind.LOST_REPLY:
            call()
        raise ServiceError(fault.code, fault.message, 500 if "Internal" in fault.code else 400)

    def no_capacity(self) -> bool:
        """Whether the job that starts now finds no machine."""
        with self._lock:
            if self._capacity_failures == 0:
                return False
            self._capacity_failures -= 1
            return True

    def interrupts_spot(self) -> bool:
        """Whether the spot instances of the job that asks are taken away now."""
        with self._lock:
            if self._spot_interruptions == 0:
                return False
            self._spot_interruptions -= 1
            return True

    def _take_token(self) -> None:
        with self._lock:
            rate = self._plan.rate_per_s
            if rate is None:
                return
            now = self._now()
            gained = (now - self._filled_at) * rate
            self._tokens = min(float(self._plan.burst), self._tokens + gained)
            self._filled_at = now
            if self._tokens < 1:
                raise throttled()
            self._tokens -= 1

    def _strike(self, operation: str, request: str) -> Fault | None:
        with self._lock:
            for index, fault in enumerate(self._plan.faults):
                if _canonical(fault.operation) != operation or fault.matching not in request:
                    continue
                if self._skips[index] > 0:
                    self._skips[index] -= 1
                    continue
                left = self._left[index]
                if left is None:
                    return fault
                if left > 0:
                    self._left[index] = left - 1
                    return fault
            return None


def _canonical(operation: str) -> str:
    service, _, action = operation.partition(":")
    return f"{service.lower()}:{action[:1].upper()}{action[1:]}"
