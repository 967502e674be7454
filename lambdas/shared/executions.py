"""Executions of the machines: started by name, looked at by name.

A STANDARD machine starts an execution once for a name and input (Step Functions API reference,
StartExecution: "If StartExecution is called with the same name and input as a running execution,
the call succeeds and return the same response"). So a start whose reply was lost is repeated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from lambdas.shared.clock import Clock

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

TOO_MANY: Final = frozenset(
    {"ThrottlingException", "TooManyRequestsException", "ExecutionLimitExceeded"}
)
_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.5
RUNNING: Final = frozenset({"RUNNING", "PENDING_REDRIVE"})


class Start(Enum):
    """What became of a start."""

    STARTED = auto()
    EXISTS = auto()
    THROTTLED = auto()


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines, and the names of their executions.

    Attributes:
        onboard_arn: The machine of single onboardings.
        batch_arn: The machine of batches.
        worker_arn: The machine of workers.
    """

    onboard_arn: str
    batch_arn: str
    worker_arn: str

    def arn(self, *, batch: bool) -> str:
        """One of the two that own requests."""
        return self.batch_arn if batch else self.onboard_arn

    def execution(self, name: str, *, batch: bool) -> str:
        """ARN of an execution by its name."""
        return f"{_executions_of(self.arn(batch=batch))}:{name}"

    def owns(self, execution_arn: str) -> bool:
        """Whether an execution is one of those that own requests."""
        return any(
            execution_arn.startswith(f"{_executions_of(arn)}:")
            for arn in (self.onboard_arn, self.batch_arn)
        )

    def is_batch(self, execution_arn: str) -> bool:
        """Whether an execution is one of batches."""
        return execution_arn.startswith(f"{_executions_of(self.batch_arn)}:")

    def is_worker(self, execution_arn: str) -> bool:
        """Whether an execution is one of workers."""
        return execution_arn.startswith(f"{_executions_of(self.worker_arn)}:")


class Executions:
    """Calls to Step Functions.

    Args:
        states: A client of Step Functions.
        machines: The machines.
        clock: The invocation's clock.
    """

    def __init__(self, states: SFNClient, machines: Machines, clock: Clock) -> None:
        self._states = states
        self.machines = machines
        self._clock = clock

    def start(self, name: str, document: str, *, batch: bool, spare_ms: int) -> Start:
        """Starts an execution that owns requests; see ``start_at``.

        Args:
            name: Its name.
            document: Its input.
            batch: Which machine.
            spare_ms: Milliseconds that the caller needs afterwards.

        Raises:
            ClientError: If it was refused for another reason, or nobody knows (5xx).
        """
        return self.start_at(self.machines.arn(batch=batch), name, document, spare_ms=spare_ms)

    def start_at(self, machine_arn: str, name: str, document: str, *, spare_ms: int) -> Start:
        """Starts an execution; repeats refusals for rate as long as time remains.

        Args:
            machine_arn: Which machine.
            name: Its name.
            document: Its input, byte by byte the same each time.
            spare_ms: Milliseconds that the caller needs afterwards.

        Raises:
            ClientError: If it was refused for another reason, or nobody knows (5xx).
        """
        for tried in range(1, _TRIES + 1):
            try:
                self._states.start_execution(stateMachineArn=machine_arn, name=name, input=document)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code == "ExecutionAlreadyExists":
                    return Start.EXISTS
                if code not in TOO_MANY:
                    raise
            else:
                return Start.STARTED
            # Full jitter: a crowd that was refused together does not come back together.
            pause_s = random.uniform(0, _FIRST_PAUSE_S * 2**tried)  # noqa: S311
            if tried == _TRIES or self._clock.remaining_ms() < spare_ms + pause_s * 1000:
                break
            self._clock.pause(pause_s)
        return Start.THROTTLED

    def describe(self, execution_arn: str) -> Mapping[str, Any] | None:
        """DescribeExecution's answer; None if there is no such execution (any more)."""
        try:
            answer = self._states.describe_execution(executionArn=execution_arn)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ExecutionDoesNotExist":
                return None
            raise
        return dict(answer)

    def stop(self, execution_arn: str, error: str, cause: str) -> None:
        """Stops an execution; one that has ended meanwhile is none of our business."""
        try:
            self._states.stop_execution(executionArn=execution_arn, error=error, cause=cause)
        except ClientError as refusal:
            if refusal.response["Error"]["Code"] != "ExecutionDoesNotExist":
                raise


def is_running(execution: Mapping[str, Any] | None) -> bool:
    """Whether DescribeExecution's answer tells of an execution that is at work."""
    return execution is not None and execution["status"] in RUNNING


def refused(error: ClientError) -> bool:
    """Whether AWS has said no; else the call may have been carried out."""
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    return 400 <= status < 500


def _executions_of(machine_arn: str) -> str:
    return machine_arn.replace(":stateMachine:", ":execution:", 1)
