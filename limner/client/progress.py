"""How far a request is: the states that its execution entered, and its training job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from limner.client.errors import code_of
from limner.registry import Request

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_stepfunctions import SFNClient

_ENTERED: Final = "StateEntered"
_EXITED: Final = "StateExited"
_FAILURES: Final = ("Failed", "TimedOut")
_SUCCESSES: Final = "Succeeded"
_HISTORY_PAGE: Final = 1_000
# What DescribeTrainingJob answers where there is no such job, or where we may not know.
_NO_JOB: Final = frozenset({"ValidationException", "ResourceNotFound", "AccessDeniedException"})


@dataclass(frozen=True, slots=True)
class StateVisit:
    """One visit of a state.

    Attributes:
        name: The state's name in the machine.
        entered_at: When it was entered.
        left_at: When it was left; None while the execution is in it.
        failures: Failed tries inside the visit; each but a last one was retried.
        error: Error name of the last failed try; empty once a later try has succeeded.
    """

    name: str
    entered_at: datetime
    left_at: datetime | None = None
    failures: int = 0
    error: str = ""

    def seconds(self, until: datetime) -> float:
        """Seconds in the state so far; ``until`` ends a visit that goes on."""
        return ((self.left_at or until) - self.entered_at).total_seconds()


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The training job of the present attempt.

    Attributes:
        name: Its name.
        status: TrainingJobStatus, such as ``InProgress``.
        secondary_status: What it does now, such as ``Downloading`` or ``Training``.
        step: Optimizer steps done, where the job's metrics say.
        steps: Optimizer steps in all, where known.
        loss: The last loss, where the job's metrics say.
    """

    name: str
    status: str
    secondary_status: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A request at one moment.

    Attributes:
        request: Its record.
        states: The states that its execution visited, in order; empty before the start, and of a
            request that shares its execution with others.
        job: Its training job; None before it exists.
    """

    request: Request
    states: tuple[StateVisit, ...] = ()
    job: JobProgress | None = None


def read_visits(stepfunctions: SFNClient, execution_arn: str) -> tuple[StateVisit, ...]:
    """The states that an execution has visited; none if it was never started.

    Raises:
        ClientError: As AWS gives it.
    """
    pages = stepfunctions.get_paginator("get_execution_history").paginate(
        executionArn=execution_arn,
        includeExecutionData=False,
        PaginationConfig={"PageSize": _HISTORY_PAGE},
    )
    try:
        return visits_of(event for page in pages for event in page["events"])
    except ClientError as error:
        if code_of(error) == "ExecutionDoesNotExist":
            return ()
        raise


def visits_of(events: Iterable[Mapping[str, Any]]) -> tuple[StateVisit, ...]:
    """The visits in a history, whose events come in order."""
    visits: list[StateVisit] = []
    for event in events:
        kind, moment = event["type"], event["timestamp"]
        if kind.endswith(_ENTERED):
            visits.append(StateVisit(event["stateEnteredEventDetails"]["name"], moment))
        elif not visits:
            continue
        elif kind.endswith(_EXITED):
            _leave(visits, event["stateExitedEventDetails"]["name"], moment)
        elif kind.startswith("Execution"):  # its end ends the visit that it is in
            _leave(visits, visits[-1].name, moment)
        elif kind.endswith(_FAILURES):
            details = event.get(f"{kind[0].lower()}{kind[1:]}EventDetails", {})
            last = visits[-1]
            error = details.get("error", kind)
            visits[-1] = replace(last, failures=last.failures + 1, error=error)
        elif kind.endswith(_SUCCESSES):
            visits[-1] = replace(visits[-1], error="")
    return tuple(visits)


def read_job(
    sagemaker: SageMakerClient, request: Request, *, alone: bool = True
) -> JobProgress | None:
    """The training job of a request's present attempt; None if there is none (yet).

    Args:
        sagemaker: A client of SageMaker. Without permission to describe jobs there is no answer,
            and progress goes without.
        request: The request; the machine writes the job's name before it creates the job.
        alone: Whether the job is this request's own; a batch job's step and loss are anybody's.

    Raises:
        ClientError: As AWS gives it.
    """
    if request.job_name is None:
        return None
    try:
        job = sagemaker.describe_training_job(TrainingJobName=request.job_name)
    except ClientError as error:
        if code_of(error) in _NO_JOB:
            return None
        raise
    told = job.get("FinalMetricDataList", []) if alone else []
    metrics = {m.get("MetricName"): m.get("Value") for m in told}
    step = metrics.get("train:step")
    return JobProgress(
        name=request.job_name,
        status=job["TrainingJobStatus"],
        secondary_status=job.get("SecondaryStatus", ""),
        step=None if step is None else int(step),
        steps=request.steps or None,
        loss=metrics.get("train:loss"),
    )


def _leave(visits: list[StateVisit], name: str, moment: datetime) -> None:
    for i in range(len(visits) - 1, -1, -1):
        visit = visits[i]
        if visit.name == name and visit.left_at is None:
            visits[i] = replace(visit, left_at=moment)
            return
