"""The client of the laptop's own controls: trouble, clock, images and jobs.

For tests and for the demo; nothing here exists on AWS.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from limner.contracts.errors import LimnerError
from limner.local.trouble import CREATE_TRAINING_JOB, Fault, Plan

FOREVER: Final = "forever"
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Job:
    """A training job as the laptop sees it.

    Attributes:
        name: TrainingJobName.
        status: TrainingJobStatus.
        secondary_status: SecondaryStatus.
        failure_reason: FailureReason, or nothing.
        log: Path of what the program printed.
    """

    name: str
    status: str
    secondary_status: str
    failure_reason: str
    log: str


class Control:
    """Controls of a running laptop.

    Args:
        endpoint_url: ``Laptop.endpoint_url``.
    """

    def __init__(self, endpoint_url: str) -> None:
        self._address = urlsplit(endpoint_url)

    def trouble(
        self,
        *,
        throttle_next: int | Literal["forever"] = 0,
        rate_per_s: float | None = None,
        burst: int = 1,
        quota_full: bool = False,
        instance_quota: int | None = None,
        capacity_failures: int = 0,
        spot_interruptions: int = 0,
        faults: Sequence[Fault] = (),
    ) -> None:
        """Replaces all trouble by this; without arguments it is a good day again.

        Args:
            throttle_next: That many next CreateTrainingJob calls are throttled.
            rate_per_s: CreateTrainingJob calls a second that AWS takes on (token bucket).
            burst: CreateTrainingJob calls that the full bucket holds.
            quota_full: CreateTrainingJob answers ResourceLimitExceeded.
            instance_quota: Training instances that may be in use at once.
            capacity_failures: That many next jobs fail with CapacityError; -1 is for ever.
            spot_interruptions: That often the instances of running spot jobs are taken away; -1
                is for ever. Each strikes once that start of the job has uploaded a checkpoint, or
                at once if the job has no CheckpointConfig.
            faults: Faults of single calls, of any service: errors, lost replies, delays.

        Raises:
            LimnerError: ``LAPTOP_NOT_RUNNING`` or ``INVALID_INPUT``.
        """
        throttles: tuple[Fault, ...] = ()
        if throttle_next:
            times = None if throttle_next == FOREVER else int(throttle_next)
            throttles = (
                Fault(
                    CREATE_TRAINING_JOB,
                    times=times,
                    code="ThrottlingException",
                    message="Rate exceeded",
                ),
            )
        plan = Plan(
            rate_per_s=rate_per_s,
            burst=burst,
            instance_quota=0 if quota_full else instance_quota,
            capacity_failures=capacity_failures,
            spot_interruptions=spot_interruptions,
            faults=(*throttles, *faults),
        )
        self._call("Trouble", {"plan": asdict(plan)})

    def trouble_left(self) -> dict[str, int | None]:
        """How often each ordered fault will still strike, by operation; None is for ever."""
        left: dict[str, int | None] = self._call("Trouble", {})["left"]
        return left

    def clock(self, scale: float, *, timeouts: float | None = None) -> None:
        """Turns the clock.

        Args:
            scale: Real seconds per second of Wait states, of back-off (Retry, streams, rules,
                asynchronous invocations) and of scheduled rules; 0 skips waits, and scheduled
                rules then fire by ``fire_rule`` only.
            timeouts: Real seconds per second of TimeoutSeconds (machines, and tasks that wait for
                a job), MaxRuntimeInSeconds, MaxWaitTimeInSeconds, KeepAlivePeriodInSeconds and the
                120 s after SIGTERM; left as it is where absent.
        """
        self._call("Clock", {"waits": scale, "timeouts": timeouts})

    def fire_rule(self, name_contains: str) -> list[str]:
        """Fires scheduled rules of EventBridge now, whatever their schedule says.

        Args:
            name_contains: Part of the rules' names; CloudFormation derives those from the stack's
                and the resource's.

        Returns:
            The names of the rules that have fired.

        Raises:
            LimnerError: ``INVALID_INPUT``, if there is no such rule.
        """
        fired: list[str] = self._call("FireRule", {"name_contains": name_contains})["fired"]
        return fired

    def register_image(self, image: str, command: Sequence[str]) -> None:
        """Makes a command stand for a container image, until the laptop stops."""
        self._call("RegisterImage", {"image": image, "command": list(command)})

    def jobs(self) -> list[Job]:
        """All training jobs, with the paths of their logs."""
        return [Job(**job) for job in self._call("Jobs", {})["jobs"]]

    def health(self) -> dict[str, Any]:
        """``pid`` and ``project`` of the laptop that answers at this endpoint."""
        return self._call("Health", {})

    def _call(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(
            self._address.hostname or "", self._address.port, timeout=_TIMEOUT_S
        )
        try:
            headers = {"X-Amz-Target": f"LimnerLocal.{action}"}
            connection.request("POST", "/", json.dumps(request), headers)
            reply = connection.getresponse()
            status, body = reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise LimnerError("LAPTOP_NOT_RUNNING", f"Nothing answers: {error}.") from error
        finally:
            connection.close()
        try:
            answer: dict[str, Any] = json.loads(body)
        except json.JSONDecodeError as error:
            raise LimnerError("LAPTOP_NOT_RUNNING", "Another program answers there.") from error
        if status != 200:
            raise LimnerError("INVALID_INPUT", str(answer.get("message", answer)))
        return answer
