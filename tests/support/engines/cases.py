"""What the machine ``onboard`` does in each kind of trouble, as one table for both engines.

``play`` prepares a case on a stack, runs it and gathers what it left; ``check`` compares that with
the table. Neither knows which engine it talks to, so a difference between the engines shows as one
case that fails on one of them. ``docs/engines.md`` explains the differences that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from limner.contracts import keys
from limner.contracts.errors import REGISTRY
from limner.contracts.onboarding import OnboardingInput
from limner.local.trouble import Fault, FaultKind
from tests.support.laptop import until
from tests.support.onboarding import Stack
from workflows import retries

CLAIMED: Final = (
    "CheckModelStatus",
    "IsModelReady",
    "ClaimRequest",
    "ReserveVersion",
    "ReadReservation",
    "IsReservationOurs",
)
BEGINNING: Final = (*CLAIMED, "PlanTraining", "RecordAttempt", "FineTune")
ENDING: Final = (
    "RecordModel",
    "InspectArtifact",
    "PublishArtifact",
    "SmokeTest",
    "ActivateModel",
    "NotifyReady",
    "RecordReadyAnnouncement",
    "Onboarded",
)
TRAINED: Final = BEGINNING + ENDING
READY_AT_ONCE: Final = ("CheckModelStatus", "IsModelReady", "RecordAlreadyReady", "AlreadyReady")
FAILED: Final = ("RecordFailure", "NotifyFailure", "RecordAnnouncement", "Failed")
JOB_FAILED: Final = ("DidJobFail", "ReadJobFailure", "IsCapacityFailure")
WAITED: Final = ("RecordWaiting", "WaitForCapacity", "RecordAttempt", "FineTune")
NEXT_ATTEMPT: Final = (*JOB_FAILED, "NextAttempt", *WAITED)
NEXT_WAIT: Final = ("DidJobFail", "CountWait", *WAITED)
SOMEBODY: Final = "arn:aws:states:us-east-1:123456789012:execution:onboard:somebody-else"
THROTTLED: Final = "SageMaker.AmazonSageMakerException"
QUOTA: Final = "SageMaker.ResourceLimitExceededException"

ENGINES: Final = ("moto", "laptop")
Step = Callable[[Stack, OnboardingInput], None]


@dataclass(frozen=True)
class Case:
    """One onboarding, what goes wrong with it, and what must come of it.

    Attributes:
        name: What the parameter of the test is called.
        path: The states, in order; None where the point in time is a race.
        error: The code that it fails with; empty if it succeeds.
        status: Status of the request's row; of ``error`` where absent.
        execution: Status of the execution; of ``error`` where absent.
        jobs: How many training jobs there are at the end.
        record: What else the request's row must hold.
        model: What the model's row must hold.
        absent: What the model's row must not hold.
        told: Type of the notification, ``ready`` or ``failed``; empty if there is none.
        tries: Errors of the failed tries of FineTune, in order.
        earlier: How many good onboardings the user has behind.
        retrain: Whether a new version is wanted.
        behave: What the training program does (``tests.support.trainer``).
        trouble: Arguments of ``Control.trouble``.
        timeouts: Real seconds per second of TimeoutSeconds.
        waits: Real seconds per second of waiting; where the machine looks a number of times, a
            busy laptop needs some time between the looks.
        prepare: Called before the start.
        meanwhile: Called after the start.
        engines: Where it runs; what is not run on the laptop here is run in ``tests/workflows``.
    """

    name: str
    path: tuple[str, ...] | None = TRAINED
    error: str = ""
    status: str = ""
    execution: str = ""
    jobs: int = 1
    record: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ("active_request",)
    told: str = ""
    tries: tuple[str, ...] = ()
    earlier: int = 0
    retrain: bool = False
    behave: str = ""
    trouble: Mapping[str, Any] = field(default_factory=dict)
    timeouts: float = 1.0
    waits: float = 0
    prepare: Step | None = None
    meanwhile: Step | None = None
    engines: tuple[str, ...] = ENGINES


@dataclass(frozen=True)
class Outcome:
    """What an onboarding has left."""

    wish: OnboardingInput
    execution: dict[str, Any]
    states: list[str]
    record: dict[str, Any]
    model: dict[str, Any] | None
    jobs: list[str]
    tries: list[str]
    heard: list[dict[str, Any]]


def on(engine: str, case: Case) -> Case:
    """The case as this engine is known to end it; ``docs/engines.md`` explains each difference."""
    return replace(case, **DIFFERENCES.get((engine, case.name), {}))


def play(stack: Stack, case: Case, wish: OnboardingInput | None = None) -> Outcome:
    """Runs a case to its end, with a wish of its own if none is given."""
    control = stack.laptop.control
    control.clock(0, timeouts=1.0)
    control.trouble()
    wish = wish or stack.wish(retrain=case.retrain)
    for _ in range(case.earlier):
        before = stack.wish(user_id=wish.user_id, retrain=True)
        assert stack.onboard(before)["status"] == "SUCCEEDED"
    stack.put_request(wish, **({"behave": case.behave} if case.behave else {}))
    if case.prepare is not None:
        case.prepare(stack, wish)
    control.trouble(**case.trouble)
    control.clock(case.waits, timeouts=case.timeouts)
    arn = stack.start(wish)
    if case.meanwhile is not None:
        case.meanwhile(stack, wish)
    execution = stack.laptop.finish(arn)
    control.clock(0, timeouts=1.0)
    control.trouble()
    wanted = _status(case)
    return Outcome(
        wish=wish,
        execution=execution,
        states=stack.states(execution),
        # The rule on an execution's end comes a moment later.
        record=until(lambda: stack.request(wish), lambda row: row["status"] == wanted),
        model=until(lambda: stack.model(wish), lambda row: _free(case, row)),
        jobs=stack.jobs(wish),
        tries=stack.failed_tries(execution),
        heard=stack.notifications(wish) if case.told else [],
    )


def check(case: Case, outcome: Outcome) -> None:
    """Compares what an onboarding has left with the table."""
    execution, record = outcome.execution, outcome.record
    assert execution["status"] == (case.execution or ("FAILED" if case.error else "SUCCEEDED"))
    if case.path is not None:
        assert tuple(outcome.states) == case.path
    assert tuple(outcome.tries) == case.tries
    assert record["status"] == _status(case)
    assert {name: record.get(name) for name in case.record} == case.record
    assert len(outcome.jobs) == case.jobs
    assert outcome.jobs == [
        keys.job_name(outcome.wish.request_id, number + 1) for number in range(case.jobs)
    ]
    model = outcome.model or {}
    assert {name: model.get(name) for name in case.model} == case.model
    assert not [name for name in case.absent if name in model]
    if case.error:
        _check_failure(case, outcome)
    elif case.told:
        (told,) = outcome.heard
        assert told["type"] == "limner.onboarding.ready"
        assert told["version"] == model["live_version"]


def _check_failure(case: Case, outcome: Outcome) -> None:
    if outcome.execution["status"] == "FAILED":
        assert outcome.execution["error"] == case.error
    if case.told:
        error = outcome.record["error"]
        assert error["code"] == case.error
        assert error["fix"] == REGISTRY[case.error].fix
        (told,) = outcome.heard
        assert told["type"] == "limner.onboarding.failed"
        assert (told["code"], told["message"]) == (case.error, error["message"])


def _status(case: Case) -> str:
    return case.status or ("FAILED" if case.error else "READY")


def _free(case: Case, row: dict[str, Any] | None) -> bool:
    return not any(name in (row or {}) for name in case.absent)


# -- Preparations ---------------------------------------------------------------------------------


def _somebody_trains(stack: Stack, wish: OnboardingInput) -> None:
    """Another execution owns the request."""
    _take(stack, wish, "SET #s = :training, #o = :other", {":training": "TRAINING"})


def _take(
    stack: Stack, wish: OnboardingInput, update: str, values: Mapping[str, Any] | None = None
) -> None:
    names = {"#o": "owner"} | ({"#s": "status"} if "#s" in update else {})
    stack.table("RequestsTableName").update_item(
        Key={"request_id": wish.request_id},
        UpdateExpression=update,
        ExpressionAttributeNames=names,
        ExpressionAttributeValues={":other": SOMEBODY, **(values or {})},
    )


def _model_is_held(stack: Stack, wish: OnboardingInput) -> None:
    """Another request of the same model is in progress."""
    stack.table("ModelsTableName").put_item(
        Item={
            "user_id": wish.user_id,
            "model_row": wish.model_id,
            "active_request": "another",
            "last_version": 1,
        }
    )


def _lose_the_request(stack: Stack, wish: OnboardingInput) -> None:
    """Somebody takes the request while its job trains; then the job ends."""
    name = _job_at_work(stack, wish)
    _take(stack, wish, "SET #o = :other")
    stack.laptop.sagemaker.stop_training_job(TrainingJobName=name)


def _stop_the_execution(stack: Stack, wish: OnboardingInput) -> None:
    _job_at_work(stack, wish)
    machine = stack.outputs["OnboardMachineArn"].replace(":stateMachine:", ":execution:")
    stack.laptop.states.stop_execution(
        executionArn=f"{machine}:{keys.execution_name(wish.request_id)}",
        error="EXECUTION_STOPPED",
        cause="enough",
    )


def _job_at_work(stack: Stack, wish: OnboardingInput) -> str:
    return until(lambda: stack.jobs(wish), bool)[0]


def _lost(operation: str, matching: str = "") -> dict[str, Any]:
    return {"faults": [Fault(operation, kind=FaultKind.LOST_REPLY, matching=matching)]}


# -- The table ------------------------------------------------------------------------------------

LIVE: Final = {"live_version": 1, "last_version": 1}
LOST_WRITES: Final = (
    ("ClaimRequest", "dynamodb:UpdateItem", "attempt"),
    ("ReserveVersion", "dynamodb:UpdateItem", "last_version"),
    ("RecordAttempt", "dynamodb:UpdateItem", "job_name"),
    ("RecordModel", "dynamodb:TransactWriteItems", "artifact_key"),
    ("ActivateModel", "dynamodb:TransactWriteItems", "live_version"),
    ("PublishArtifact", "s3:CopyObject", ""),
)

CASES: Final = (
    Case("a new user", model=LIVE, told="ready"),
    Case(
        "a user with a model",
        earlier=1,
        path=READY_AT_ONCE,
        jobs=0,
        model=LIVE,
        record={"already_ready": True, "version": 1},
    ),
    Case("retraining", earlier=1, retrain=True, model={"live_version": 2}, told="ready"),
    Case(
        "throttled, then not",
        trouble={"throttle_next": 4},
        tries=(THROTTLED,) * 4,
        model=LIVE,
    ),
    Case(
        "throttled for ever",
        trouble={"throttle_next": "forever"},
        path=(*BEGINNING, "DidJobFail", *FAILED),
        error="THROTTLED",
        jobs=0,
        tries=(THROTTLED,) * (1 + retries.SERVICE.attempts),
        told="failed",
    ),
    Case(
        "the quota is full for a while",
        trouble={
            "faults": [
                Fault(
                    "sagemaker:CreateTrainingJob",
                    code="ResourceLimitExceeded",
                    message="The account-level service limit is 0 Instances.",
                    times=2 * (1 + retries.QUOTA.attempts),
                )
            ]
        },
        path=(*BEGINNING, *NEXT_WAIT, *NEXT_WAIT, *ENDING),
        tries=(QUOTA,) * 2 * (1 + retries.QUOTA.attempts),
        record={"attempt": 1},
        model=LIVE,
        told="ready",
    ),
    Case(
        "no capacity once",
        trouble={"capacity_failures": 1},
        path=(*BEGINNING, *NEXT_ATTEMPT, *ENDING),
        jobs=2,
        record={"attempt": 2},
        model=LIVE,
        told="ready",
    ),
    Case(
        "no capacity for ever",
        trouble={"capacity_failures": -1},
        path=(*BEGINNING, *NEXT_ATTEMPT, *NEXT_ATTEMPT, *JOB_FAILED, *FAILED),
        error="NO_CAPACITY",
        jobs=3,
        told="failed",
    ),
    Case(
        "the reply to the job is lost",
        trouble=_lost("sagemaker:CreateTrainingJob"),
        path=None,  # how often it looks at the adopted job is a matter of time
        waits=0.002,
        tries=(THROTTLED, "SageMaker.ResourceInUseException"),
        model=LIVE,
        told="ready",
    ),
    Case(
        "the training fails",
        behave="fail",
        path=(*BEGINNING, *JOB_FAILED, *FAILED),
        error="PHOTO_TOO_SMALL",
        absent=("active_request", "live_version"),
        told="failed",
    ),
    Case(
        "the training crashes",
        behave="crash",
        path=(*BEGINNING, *JOB_FAILED, *FAILED),
        error="TRAINING_FAILED",
        told="failed",
    ),
    Case(
        "the job never ends",
        behave="hang",
        timeouts=0.0001,
        path=None,  # the task's deadline or, sooner, the job's own: both are the same failure
        error="DEADLINE_EXCEEDED",
        told="failed",
    ),
    Case(
        "the model is poor",
        behave="poor",
        path=(*BEGINNING, "RecordModel", "InspectArtifact", *FAILED),
        error="QUALITY_TOO_LOW",
        absent=("active_request", "live_version"),
        told="failed",
    ),
    Case(
        "the model does not draw",
        trouble={"faults": [Fault("sagemaker:InvokeEndpoint", code="ModelError", times=None)]},
        path=(
            *BEGINNING,
            "RecordModel",
            "InspectArtifact",
            "PublishArtifact",
            "SmokeTest",
            *FAILED,
        ),
        error="SMOKE_TEST_FAILED",
        absent=("active_request", "live_version"),
        told="failed",
    ),
    Case(
        "somebody else owns the request",
        prepare=_somebody_trains,
        path=("CheckModelStatus", "IsModelReady", "ClaimRequest", "RequestNotClaimed"),
        error="REQUEST_ALREADY_CLAIMED",
        status="TRAINING",
        record={"owner": SOMEBODY},
        jobs=0,
    ),
    Case(
        "the model is busy",
        prepare=_model_is_held,
        path=(*CLAIMED, "ModelBusy", *FAILED),
        error="MODEL_BUSY",
        jobs=0,
        absent=(),
        model={"active_request": "another"},
        told="failed",
    ),
    Case(
        "somebody takes the request while it trains",
        behave="hang",
        meanwhile=_lose_the_request,
        path=(*BEGINNING, *JOB_FAILED, "RecordFailure", "FailureNotRecorded"),
        error="NotRecorded",
        status="TRAINING",
        record={"owner": SOMEBODY},
        absent=("live_version",),
    ),
    Case(
        "the failure cannot be recorded",
        behave="crash",
        trouble={"faults": [Fault("lambda:Invoke", times=9, matching="failure")]},
        path=(*BEGINNING, *JOB_FAILED, "RecordFailure", "FailureNotRecorded"),
        error="NotRecorded",
        record={},
    ),
    Case(
        "somebody stops the execution",
        behave="hang",
        meanwhile=_stop_the_execution,
        path=BEGINNING,
        error="EXECUTION_STOPPED",
        execution="ABORTED",
        status="CANCELLED",
        absent=("active_request", "live_version"),
        told="failed",
    ),
    Case(
        "nobody can be told",
        trouble={"faults": [Fault("sns:Publish", times=None)]},
        path=(*TRAINED[:-2], "ReadyUnannounced"),
        error="AWS_ERROR",
        status="READY",
        model=LIVE,
    ),
    Case(
        "a lost reply while it waits for capacity",
        trouble={"capacity_failures": 1, **_lost("dynamodb:UpdateItem", "= :waiting, #updated")},
        path=(*BEGINNING, *NEXT_ATTEMPT, *ENDING),
        jobs=2,
        model=LIVE,
    ),
    Case(
        "a lost reply of a user with a model",
        earlier=1,
        trouble=_lost("dynamodb:UpdateItem", "already_ready"),
        path=READY_AT_ONCE,
        jobs=0,
    ),
    *(
        Case(
            f"a lost reply of {state}",
            trouble=_lost(operation, matching),
            model=LIVE,
            engines=("moto",),
        )
        for state, operation, matching in LOST_WRITES
    ),
)

# -- Where an engine is known to differ -----------------------------------------------------------

DIFFERENCES: Final[Mapping[tuple[str, str], dict[str, Any]]] = {}
