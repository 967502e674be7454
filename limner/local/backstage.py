"""``LimnerLocal.*``: what one can tell the laptop and could never tell AWS.

Spoken on the laptop's own port in AWS's JSON style, so that whatever process holds the endpoint's
URL can turn the clock or order trouble. ``control.Control`` is the client.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from limner.local.clock import Clock
from limner.local.errors import ServiceError, validation
from limner.local.images import Images
from limner.local.sagemaker.api import HttpReply
from limner.local.sagemaker.store import Store
from limner.local.settings import DaemonSettings
from limner.local.triggers.schedules import Schedules
from limner.local.trouble import Plan, Trouble

TARGET_PREFIX = "LimnerLocal."
_JSON = "application/x-amz-json-1.1"


class Backstage:
    """The service behind the prefix.

    Args:
        settings: The daemon's settings.
        clock: To be turned.
        trouble: To be ordered.
        images: To be registered.
        jobs: Records of training jobs.
        schedules: Rules that can be fired now.
    """

    def __init__(
        self,
        settings: DaemonSettings,
        clock: Clock,
        trouble: Trouble,
        images: Images,
        jobs: Store,
        schedules: Schedules,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._trouble = trouble
        self._images = images
        self._jobs = jobs
        self._schedules = schedules
        self._actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Health": self._health,
            "Clock": self._turn_clock,
            "Trouble": self._order_trouble,
            "RegisterImage": self._register_image,
            "Jobs": self._list_jobs,
            "FireRule": self._fire_rule,
        }

    async def handle(
        self,
        method: str,  # noqa: ARG002  # ministack's signature of a handler
        path: str,  # noqa: ARG002
        headers: dict[str, str],
        body: bytes,
        query: dict[str, list[str]],  # noqa: ARG002
    ) -> HttpReply:
        """The handler for ministack."""
        action = headers.get("x-amz-target", "").removeprefix(TARGET_PREFIX)
        try:
            perform = self._actions.get(action)
            if perform is None:
                raise ServiceError("UnknownOperationException", f"There is no {action}.")
            answer = perform(json.loads(body or b"{}"))
        except json.JSONDecodeError:
            return _reply(400, {"__type": "SerializationException", "message": "not JSON"})
        except ServiceError as error:
            return _reply(error.status, {"__type": error.code, "message": error.message})
        return _reply(200, answer)

    def _health(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "project": str(self._settings.layout.project)}

    def _turn_clock(self, request: dict[str, Any]) -> dict[str, Any]:
        for dial in ("waits", "timeouts"):
            value = request.get(dial)
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise validation(f"{dial} must be a number of 0 or more.")
        self._clock.turn(waits=request.get("waits"), timeouts=request.get("timeouts"))
        return {"waits": self._clock.waits, "timeouts": self._clock.timeouts}

    def _order_trouble(self, request: dict[str, Any]) -> dict[str, Any]:
        if "plan" in request:
            self._trouble.set(Plan.from_json(request["plan"]))
        return {"left": self._trouble.left()}

    def _register_image(self, request: dict[str, Any]) -> dict[str, Any]:
        self._images.register(request.get("image", ""), request.get("command", []))
        return {}

    def _fire_rule(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = str(request.get("name_contains", ""))
        fired = self._schedules.fire(wanted)
        if not fired:
            raise validation(f"No enabled rule with a schedule has '{wanted}' in its name.")
        return {"fired": fired}

    def _list_jobs(self, _: dict[str, Any]) -> dict[str, Any]:
        folder = self._settings.layout.jobs
        return {
            "jobs": [
                {
                    "name": job["TrainingJobName"],
                    "status": job["TrainingJobStatus"],
                    "secondary_status": job["SecondaryStatus"],
                    "failure_reason": job.get("FailureReason", ""),
                    "log": str(folder / job["TrainingJobName"] / "log"),
                }
                for job in self._jobs.all()
            ]
        }


def _reply(status: int, body: dict[str, Any]) -> HttpReply:
    return status, {"content-type": _JSON}, json.dumps(body).encode()
