"""The published machine, executed: every branch, every kind of trouble, and what each leaves."""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from limner.contracts import keys
from limner.contracts.errors import REGISTRY
from limner.contracts.onboarding import OnboardingFailed, OnboardingReady
from limner.contracts.training import TrainingConfig
from limner.local.trouble import Fault, FaultKind
from tests.support.laptop import until
from tests.support.onboarding import Stack
from workflows import retries

TRAINED_PATH = [
    "CheckModelStatus",
    "IsModelReady",
    "ClaimRequest",
    "ReserveVersion",
    "ReadReservation",
    "IsReservationOurs",
    "PlanTraining",
    "RecordAttempt",
    "FineTune",
    "RecordModel",
    "InspectArtifact",
    "PublishArtifact",
    "SmokeTest",
    "ActivateModel",
    "NotifyReady",
    "RecordReadyAnnouncement",
    "Onboarded",
]
FAILED_END = ["RecordFailure", "NotifyFailure", "RecordAnnouncement", "Failed"]


def instance_types(stack: Stack) -> list[str]:
    """The list that the stack was deployed with."""
    described = stack.laptop.states.describe_state_machine(
        stateMachineArn=stack.outputs["OnboardMachineArn"]
    )
    (types,) = set(re.findall(r"States.StringSplit\('([^']+)'", described["definition"]))
    return types.split(",")


def assert_in_no_index(record: dict[str, Any]) -> None:
    """Whatever has ended is neither queued nor open, and belongs to no dispatcher."""
    assert {"open", "queue", "lease_until"}.isdisjoint(record)


def assert_failed(stack: Stack, wish: Any, execution: dict[str, Any], code: str) -> dict[str, Any]:
    """A failure is in the record, in the notification and in the execution, in the same words."""
    assert execution["status"] == "FAILED"
    assert stack.states(execution)[-4:] == FAILED_END
    assert execution["error"] == code
    record = stack.request(wish)
    assert record["status"] == "FAILED"
    assert record["error"]["code"] == code
    assert record["error"]["fix"] == REGISTRY[code].fix
    (heard,) = stack.notifications(wish)
    told = OnboardingFailed.model_validate(heard)
    assert (told.code, told.message) == (code, record["error"]["message"])
    assert told.fault == record["error"]["fault"] == REGISTRY[code].fault
    assert "unannounced" not in record
    assert_in_no_index(record)
    model = stack.model(wish)
    assert model is None or "active_request" not in model, "a failure frees the model"
    error: dict[str, Any] = record["error"]
    return error


def assert_ready(stack: Stack, wish: Any, execution: dict[str, Any], version: int = 1) -> None:
    """The version serves, and nothing is left of the way there."""
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    record = stack.request(wish)
    assert record["status"] == "READY"
    assert record["owner"] == execution["executionArn"]
    assert_in_no_index(record)
    model = stack.model(wish)
    assert model is not None
    assert model["live_version"] == version
    assert model["target_model"] == keys.target_model(wish.user_id, "default", version)
    assert "active_request" not in model
    row = stack.model(wish, keys.version_row("default", version))
    assert row is not None
    assert (row["status"], row["request_id"]) == ("READY", wish.request_id)


# -- The good ways --------------------------------------------------------------------------------


def test_a_new_user_gets_a_model(stack: Stack) -> None:
    wish = stack.wish()
    execution = stack.onboard(wish)
    assert_ready(stack, wish, execution)
    assert stack.states(execution) == TRAINED_PATH
    assert stack.jobs(wish) == [keys.job_name(wish.request_id, 1)]
    assert stack.artifact_keys(wish) == [keys.artifact_key(wish.user_id, "default", 1)]
    (heard,) = stack.notifications(wish)
    told = OnboardingReady.model_validate(heard)
    assert (told.request_id, told.version) == (wish.request_id, 1)


def test_the_job_is_told_its_config_by_a_file(stack: Stack) -> None:
    wish = stack.wish()
    assert_ready(stack, wish, stack.onboard(wish))
    job = stack.job(keys.job_name(wish.request_id, 1))
    assert job.get("HyperParameters", {}) == {}
    channels = [channel["ChannelName"] for channel in job["InputDataConfig"]]
    assert channels == ["photos", "config", "base"]


def test_a_user_with_a_model_is_ready_at_once(stack: Stack) -> None:
    first = stack.wish()
    assert_ready(stack, first, stack.onboard(first))
    second = stack.wish(user_id=first.user_id)
    execution = stack.onboard(second)
    assert execution["status"] == "SUCCEEDED"
    assert stack.states(execution) == [
        "CheckModelStatus",
        "IsModelReady",
        "RecordAlreadyReady",
        "AlreadyReady",
    ]
    record = stack.request(second)
    assert (record["status"], record["already_ready"], record["version"]) == ("READY", True, 1)
    assert stack.jobs(second) == []


def test_retraining_makes_the_next_version_and_leaves_the_old_artifact(stack: Stack) -> None:
    first = stack.wish()
    assert_ready(stack, first, stack.onboard(first))
    second = stack.wish(user_id=first.user_id, retrain=True)
    assert_ready(stack, second, stack.onboard(second), version=2)
    assert stack.artifact_keys(first) == [
        keys.artifact_key(first.user_id, "default", version) for version in (1, 2)
    ]


# -- CreateTrainingJob in trouble -----------------------------------------------------------------


def test_throttled_calls_are_repeated_until_one_passes(stack: Stack) -> None:
    stack.laptop.control.trouble(throttle_next=4)
    wish = stack.wish()
    execution = stack.onboard(wish)
    assert_ready(stack, wish, execution)
    assert stack.failed_tries(execution) == ["SageMaker.AmazonSageMakerException"] * 4
    assert stack.jobs(wish) == [keys.job_name(wish.request_id, 1)], "the retries bought one job"


def test_throttled_for_ever_ends_with_a_name(stack: Stack) -> None:
    stack.laptop.control.clock(0)
    stack.laptop.control.trouble(throttle_next="forever")
    wish = stack.wish()
    execution = stack.onboard(wish)
    error = assert_failed(stack, wish, execution, "THROTTLED")
    assert error["retryable"] is True
    assert len(stack.failed_tries(execution)) == 31
    assert stack.jobs(wish) == []


def test_a_full_quota_is_waited_for_and_the_user_may_know(stack: Stack) -> None:
    stack.laptop.control.trouble(quota_full=True)
    wish = stack.wish()
    stack.put_request(wish)
    arn = stack.start(wish)
    until(lambda: stack.request(wish)["status"], lambda s: s == "WAITING_FOR_CAPACITY")
    stack.laptop.control.trouble()
    execution = stack.laptop.finish(arn)
    assert_ready(stack, wish, execution)
    states = stack.states(execution)
    assert states.count("CountWait") == states.count("WaitForCapacity") >= 1
    assert "NextAttempt" not in states
    assert stack.jobs(wish) == [keys.job_name(wish.request_id, 1)], "no job was made: same name"
    assert stack.request(wish)["attempt"] == 1


def test_a_quota_that_stays_full_ends_with_a_name(stack: Stack) -> None:
    stack.laptop.control.clock(0)
    stack.laptop.control.trouble(quota_full=True)
    wish = stack.wish()
    execution = stack.onboard(wish, deadline_s=120)
    error = assert_failed(stack, wish, execution, "QUOTA_EXCEEDED")
    assert error["fault"] == "aws"
    assert stack.states(execution).count("WaitForCapacity") == retries.QUOTA_WAITS
    assert set(stack.failed_tries(execution)) == {retries.JOB_QUOTA}
    assert stack.jobs(wish) == []


def test_a_lost_reply_buys_one_job_which_is_adopted(stack: Stack) -> None:
    stack.laptop.control.trouble(
        faults=[Fault("sagemaker:CreateTrainingJob", kind=FaultKind.LOST_REPLY)]
    )
    wish = stack.wish()
    execution = stack.onboard(wish, seconds=0.5)
    assert_ready(stack, wish, execution)
    assert "AwaitJob" in stack.states(execution)
    assert stack.jobs(wish) == [keys.job_name(wish.request_id, 1)]


def test_no_capacity_takes_a_new_attempt_with_a_new_job(stack: Stack) -> None:
    stack.laptop.control.trouble(capacity_failures=1)
    wish = stack.wish()
    execution = stack.onboard(wish)
    assert_ready(stack, wish, execution)
    assert "NextAttempt" in stack.states(execution)
    assert stack.jobs(wish) == [keys.job_name(wish.request_id, n) for n in (1, 2)]
    assert stack.request(wish)["attempt"] == 2
    types = [stack.job(name)["ResourceConfig"]["InstanceType"] for name in stack.jobs(wish)]
    assert types == instance_types(stack)[:2], "another machine, where the first had none free"


def test_no_capacity_for_ever_ends_with_a_name(stack: Stack) -> None:
    stack.laptop.control.trouble(capacity_failures=-1)
    wish = stack.wish()
    assert_failed(stack, wish, stack.onboard(wish), "NO_CAPACITY")
    assert len(stack.jobs(wish)) == len(instance_types(stack))


def test_a_permission_that_is_missing_is_told_by_its_name(stack: Stack) -> None:
    """It shares its error name with throttling, which Retry cannot tell apart; the record can."""
    stack.laptop.control.clock(0)
    stack.laptop.control.trouble(
        faults=[
            Fault(
                "sagemaker:CreateTrainingJob",
                code="AccessDeniedException",
                message="User is not authorized to perform sagemaker:CreateTrainingJob",
                times=None,
            )
        ]
    )
    wish = stack.wish()
    error = assert_failed(stack, wish, stack.onboard(wish), "AWS_ERROR")
    assert "not authorized" in error["message"]


def with_the_sdk_s_own_call(stack: Stack) -> str:
    """A machine like the deployed one, but with ``call="sdk"``; returns its ARN.

    That these two fields are all that differs is a unit test's business (``test_sdk_call``).
    """
    described = stack.laptop.states.describe_state_machine(
        stateMachineArn=stack.outputs["OnboardMachineArn"]
    )
    definition = json.loads(described["definition"])
    definition["States"]["FineTune"] |= {
        "Resource": "arn:aws:states:::aws-sdk:sagemaker:createTrainingJob",
        "Next": "AwaitJob",
    }
    arn: str = stack.laptop.states.create_state_machine(
        name=f"sdk-{uuid.uuid4().hex[:8]}",
        definition=json.dumps(definition),
        roleArn=described["roleArn"],
    )["stateMachineArn"]
    return arn


def test_a_job_of_the_sdk_s_own_call_is_looked_at_until_it_ends(stack: Stack) -> None:
    machine = with_the_sdk_s_own_call(stack)
    wish = stack.wish()
    stack.put_request(wish, seconds=3)
    execution = stack.laptop.finish(stack.start(wish, machine=machine))
    assert_ready(stack, wish, execution)
    assert {"AwaitJob", "CountLook", "WaitForJob"} <= set(stack.states(execution))
    assert len(stack.jobs(wish)) == 1


def test_the_sdk_s_own_call_meets_the_same_troubles(stack: Stack) -> None:
    machine = with_the_sdk_s_own_call(stack)
    stack.laptop.control.trouble(throttle_next=2, capacity_failures=1)
    wish = stack.wish()
    stack.put_request(wish)
    execution = stack.laptop.finish(stack.start(wish, machine=machine))
    assert_ready(stack, wish, execution)
    assert len(stack.failed_tries(execution)) == 2
    assert len(stack.jobs(wish)) == 2


def test_a_job_that_nobody_looks_at_any_more_is_stopped(stack: Stack) -> None:
    stack.laptop.control.clock(0)
    machine = with_the_sdk_s_own_call(stack)
    wish = stack.wish()
    stack.put_request(wish, behave="hang")
    execution = stack.laptop.finish(stack.start(wish, machine=machine), deadline_s=120)
    assert stack.states(execution).count("CountLook") == retries.JOB_LOOKS
    assert execution["error"] == "DEADLINE_EXCEEDED"
    assert stack.request(wish)["status"] == "FAILED"
    (name,) = stack.jobs(wish)
    until(lambda: stack.job(name)["TrainingJobStatus"], lambda status: status == "Stopped")


# -- The job in trouble ---------------------------------------------------------------------------


def test_a_failed_training_is_told_in_the_container_s_own_words(stack: Stack) -> None:
    reason = "PHOTO_TOO_SMALL: 2.png is 8x8 pixels; a side needs 32. Fix: Replace the photo."
    wish = stack.wish()
    execution = stack.onboard(wish, behave="fail", reason=reason)
    error = assert_failed(stack, wish, execution, "PHOTO_TOO_SMALL")
    assert "2.png is 8x8 pixels" in error["message"]
    assert stack.artifact_keys(wish) == []


def test_a_crash_without_a_reason_is_a_failed_training(stack: Stack) -> None:
    wish = stack.wish()
    error = assert_failed(stack, wish, stack.onboard(wish, behave="crash"), "TRAINING_FAILED")
    assert "3" in error["message"], "the exit code is the only reason there is"


def test_a_job_that_never_ends_meets_the_task_s_timeout_and_is_stopped(stack: Stack) -> None:
    stack.laptop.control.clock(0.01, timeouts=0.0001)
    wish = stack.wish()
    execution = stack.onboard(wish, behave="hang")
    stack.laptop.control.clock(0.01, timeouts=1.0)
    assert_failed(stack, wish, execution, "DEADLINE_EXCEEDED")
    (name,) = stack.jobs(wish)
    job = until(
        lambda: stack.laptop.sagemaker.describe_training_job(TrainingJobName=name),
        lambda job: job["TrainingJobStatus"] in ("Stopped", "Completed", "Failed"),
    )
    assert job["TrainingJobStatus"] == "Stopped"


# -- The execution in trouble ---------------------------------------------------------------------


def test_a_stopped_execution_stops_its_job_and_ends_its_request(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish, behave="hang")
    arn = stack.start(wish)
    name = keys.job_name(wish.request_id, 1)
    until(lambda: stack.jobs(wish), lambda jobs: jobs == [name])
    stack.laptop.states.stop_execution(executionArn=arn, error="EXECUTION_STOPPED", cause="enough")
    assert stack.laptop.finish(arn)["status"] == "ABORTED"
    record = until(lambda: stack.request(wish), lambda row: row["status"] == "CANCELLED")
    assert record["error"]["code"] == "EXECUTION_STOPPED"
    model = until(lambda: stack.model(wish), lambda row: "active_request" not in (row or {}))
    assert model is not None
    assert "live_version" not in model
    until(
        lambda: stack.laptop.sagemaker.describe_training_job(TrainingJobName=name),
        lambda job: job["TrainingJobStatus"] == "Stopped",
    )
    (heard,) = stack.notifications(wish)
    assert heard["code"] == "EXECUTION_STOPPED"
    again = stack.wish(user_id=wish.user_id)
    assert_ready(stack, again, stack.onboard(again), version=2)


def test_a_broken_artifact_never_goes_live(stack: Stack) -> None:
    stack.laptop.control.trouble(
        faults=[
            Fault(
                "sagemaker:InvokeEndpoint",
                code="ModelError",
                message="Received client error (400) from model",
                times=None,
            )
        ]
    )
    wish = stack.wish()
    assert_failed(stack, wish, stack.onboard(wish), "SMOKE_TEST_FAILED")
    model = stack.model(wish)
    assert model is not None
    assert "live_version" not in model


# -- Twice ----------------------------------------------------------------------------------------


def test_the_same_request_twice_is_one_execution_and_one_job(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish)
    with ThreadPoolExecutor(max_workers=8) as pool:
        arns = set(pool.map(lambda _: stack.start(wish), range(8)))
    assert len(arns) == 1
    assert_ready(stack, wish, stack.laptop.finish(arns.pop()))
    assert stack.jobs(wish) == [keys.job_name(wish.request_id, 1)]


def test_a_second_execution_of_a_request_leaves_the_owner_alone(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish, seconds=4)
    first = stack.start(wish)
    until(lambda: stack.jobs(wish), lambda jobs: len(jobs) == 1)
    second = stack.laptop.finish(stack.start(wish, name=f"{wish.request_id}-other"))
    assert (second["status"], second["error"]) == ("FAILED", "REQUEST_ALREADY_CLAIMED")
    assert stack.states(second)[-1] == "RequestNotClaimed"
    assert_ready(stack, wish, stack.laptop.finish(first))
    assert len(stack.jobs(wish)) == 1
    assert {body["type"] for body in stack.notifications(wish)} == {"limner.onboarding.ready"}


def test_two_requests_of_one_model_do_not_train_side_by_side(stack: Stack) -> None:
    first = stack.wish()
    stack.put_request(first, seconds=4)
    running = stack.start(first)
    until(lambda: stack.jobs(first), lambda jobs: len(jobs) == 1)
    second = stack.wish(user_id=first.user_id)
    execution = stack.onboard(second)
    assert execution["error"] == "MODEL_BUSY"
    assert stack.request(second)["error"]["retryable"] is True
    assert stack.jobs(second) == []
    assert_ready(stack, first, stack.laptop.finish(running))


def test_a_model_that_went_live_meanwhile_is_not_trained_again(stack: Stack) -> None:
    """Between the look at the model and the reservation another request has made it ready."""
    wish = stack.wish()
    stack.laptop.control.trouble(
        faults=[Fault("dynamodb:UpdateItem", kind=FaultKind.DELAY, seconds=6, matching="attempt")]
    )
    stack.put_request(wish)
    models = stack.table("ModelsTableName")
    arn = stack.start(wish)
    until(
        lambda: stack.states({"executionArn": arn}), lambda states: states[-1:] == ["ClaimRequest"]
    )
    row = {"user_id": wish.user_id, "model_row": "default", "last_version": 1, "live_version": 1}
    models.put_item(Item=row)
    execution = stack.laptop.finish(arn)
    assert_failed(stack, wish, execution, "MODEL_BUSY")
    assert stack.jobs(wish) == []
    model = stack.model(wish)
    assert model is not None
    assert model["live_version"] == 1


# -- Writes in trouble ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "matching"),
    [
        ("dynamodb:UpdateItem", "attempt"),  # ClaimRequest
        ("dynamodb:UpdateItem", "last_version"),  # ReserveVersion
        ("dynamodb:UpdateItem", "job_name"),  # RecordAttempt
        ("dynamodb:TransactWriteItems", "artifact_key"),  # RecordModel
        ("dynamodb:TransactWriteItems", "live_version"),  # ActivateModel
        ("s3:CopyObject", ""),  # PublishArtifact
    ],
)
def test_a_write_whose_reply_was_lost_is_recognised(
    stack: Stack, operation: str, matching: str
) -> None:
    wish = stack.wish()
    stack.laptop.control.trouble(
        faults=[Fault(operation, kind=FaultKind.LOST_REPLY, matching=matching)]
    )
    execution = stack.onboard(wish)
    assert stack.laptop.control.trouble_left().get(operation, 0) == 0, "the fault has struck"
    assert_ready(stack, wish, execution)
    model = stack.model(wish)
    assert model is not None
    assert model["last_version"] == 1


def test_a_lost_reply_on_the_way_through_missing_capacity_is_recognised(stack: Stack) -> None:
    stack.laptop.control.trouble(
        capacity_failures=1,
        faults=[
            Fault(
                "dynamodb:UpdateItem", kind=FaultKind.LOST_REPLY, matching="SET #status = :waiting"
            )
        ],
    )
    wish = stack.wish()
    execution = stack.onboard(wish)
    assert stack.laptop.control.trouble_left() == {"dynamodb:UpdateItem": 0}
    assert_ready(stack, wish, execution)
    assert len(stack.jobs(wish)) == 2


def test_a_lost_reply_of_a_user_who_is_ready_is_recognised(stack: Stack) -> None:
    first = stack.wish()
    assert_ready(stack, first, stack.onboard(first))
    stack.laptop.control.trouble(
        faults=[Fault("dynamodb:UpdateItem", kind=FaultKind.LOST_REPLY, matching="already_ready")]
    )
    second = stack.wish(user_id=first.user_id)
    assert stack.onboard(second)["status"] == "SUCCEEDED"
    assert stack.laptop.control.trouble_left() == {"dynamodb:UpdateItem": 0}
    assert stack.request(second)["status"] == "READY"


def test_a_lost_condition_fails_without_touching_the_winner(stack: Stack) -> None:
    """Somebody else takes the request while its job trains: the old owner must not win."""
    wish = stack.wish()
    stack.put_request(wish, seconds=4)
    arn = stack.start(wish)
    until(lambda: stack.jobs(wish), lambda jobs: len(jobs) == 1)
    stack.table("RequestsTableName").update_item(
        Key={"request_id": wish.request_id},
        UpdateExpression="SET #o = :new",
        ExpressionAttributeNames={"#o": "owner"},
        ExpressionAttributeValues={":new": "arn:aws:states:::execution:somebody-else"},
    )
    execution = stack.laptop.finish(arn)
    assert execution["status"] == "FAILED"
    record = stack.request(wish)
    assert record["owner"] == "arn:aws:states:::execution:somebody-else"
    assert record["status"] == "TRAINING"
    assert stack.artifact_keys(wish) == []


def test_a_failure_that_the_machine_cannot_record_is_recorded_by_the_rule(stack: Stack) -> None:
    """In the words of the first failure, not of the failure to record it."""
    stack.laptop.control.trouble(
        capacity_failures=-1,
        faults=[Fault("lambda:Invoke", times=9, matching="failure")],
    )
    wish = stack.wish()
    execution = stack.onboard(wish)
    assert stack.states(execution)[-1] == "FailureNotRecorded"
    record = until(lambda: stack.request(wish), lambda row: row["status"] == "FAILED")
    assert record["error"]["code"] == "NO_CAPACITY"
    (heard,) = stack.notifications(wish)
    assert heard["code"] == "NO_CAPACITY"


def test_neither_history_nor_record_nor_notification_holds_a_prompt(stack: Stack) -> None:
    canary = "canary-5f1d"
    wish = stack.wish()
    stack.put_request(wish)
    config = TrainingConfig(preview_prompts=(f"a photo of {canary}",))
    stack.put_config(wish, config.model_dump_json().encode())
    execution = stack.laptop.finish(stack.start(wish))
    assert_ready(stack, wish, execution)
    (heard,) = stack.notifications(wish)
    assert canary not in json.dumps(stack.history(execution), default=str)
    assert canary not in json.dumps(heard)
    assert canary not in json.dumps(stack.request(wish), default=str)
