"""Warm pools: instances that stay for the next job.

SageMaker developer guide, "Train Using SageMaker AI Managed Warm Pools": a job with
KeepAlivePeriodInSeconds leaves its instances Available; "a matching training job" that asks for a
pool itself takes them over (the old job's pool is Reused, the new one's InUse); after the period
the pool is Terminated. Pools count in the quota of instances. Lost at a stop of the laptop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from limner.local.clock import Clock, Deadline
from limner.local.json_types import Json
from limner.local.sagemaker.store import Record, Store

AVAILABLE: Final = "Available"
IN_USE: Final = "InUse"
# "To match, the following must be the same" (the page above); image and hyperparameters need not.
_RESOURCES: Final = ("InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId")
_OTHERS: Final = (
    "RoleArn",
    "VpcConfig",
    "EnableInterContainerTrafficEncryption",
    "EnableNetworkIsolation",
)


def keep_alive_s(request: Mapping[str, Any]) -> int:
    """Seconds that a job's instances are kept; 0 where it asks for no pool."""
    return int(request["ResourceConfig"].get("KeepAlivePeriodInSeconds") or 0)


class WarmPools:
    """All pools of the laptop; thread-safe.

    Args:
        store: Records of training jobs, whose WarmPoolStatus is kept here.
        clock: KeepAlivePeriodInSeconds follows its dial ``timeouts``.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._ends: dict[str, Deadline] = {}
        self._begun: dict[str, float] = {}
        for record in store.all():
            if record.get("WarmPoolStatus", {}).get("Status") in (AVAILABLE, IN_USE):
                self._settle(record["TrainingJobName"], "Terminated")

    def keep(self, record: Record, *, is_there: bool) -> None:
        """The job ends; its instances stay for a while, if it asked for that.

        Args:
            record: Of the job.
            is_there: Whether it has had instances at all.
        """
        seconds = keep_alive_s(record)
        if not seconds:
            return
        name = record["TrainingJobName"]
        with self._lock:
            if not is_there:
                self._settle(name, "Terminated")
                return
            self._ends[name] = self._clock.deadline(seconds)
            self._begun[name] = time.time()
            self._settle(name, AVAILABLE)

    def take(self, request: Mapping[str, Any]) -> str | None:
        """Finds the pool for a new job, which then is that job's.

        Returns:
            The job that has left it, or None.
        """
        if not keep_alive_s(request):
            return None
        self.expire()
        with self._lock:
            for name in self._ends:
                record = self._store.get(name)
                if record is not None and _matching(record) == _matching(request):
                    self._settle(name, "Reused", request["TrainingJobName"])
                    del self._ends[name]
                    return name
        return None

    def expire(self) -> None:
        """Ends the pools whose time is over; called by whoever is about to look at them."""
        with self._lock:
            for name in [name for name, end in self._ends.items() if end.passed()]:
                self._settle(name, "Terminated")
                del self._ends[name]

    def end(self, name: str) -> bool:
        """Ends the pool that a job has left; returns whether there was one."""
        with self._lock:
            if self._ends.pop(name, None) is None:
                return False
            self._settle(name, "Terminated")
            return True

    def _settle(self, name: str, status: str, reused_by: str = "") -> None:
        kept_s = int(time.time() - self._begun.get(name, time.time()))
        pool: dict[str, Any] = {
            "Status": status,
            "ResourceRetainedBillableTimeInSeconds": kept_s,
            **({"ReusedByJob": reused_by} if reused_by else {}),
        }
        with self._store.change(name) as record:
            record["WarmPoolStatus"] = pool


def is_available(record: Record) -> bool:
    """Whether the instances of a job that has ended still wait for the next one."""
    return bool(record.get("WarmPoolStatus", {}).get("Status") == AVAILABLE)


def _matching(request: Mapping[str, Any]) -> list[Json]:
    resources = request["ResourceConfig"]
    return [
        *(resources.get(member) for member in _RESOURCES),
        *(request.get(member) or None for member in _OTHERS),
    ]
