"""The machine of batches, executed: what happens to one request happens to it alone."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from boto3.dynamodb.conditions import Attr

from limner.contracts import keys
from limner.contracts.errors import REGISTRY
from limner.contracts.onboarding import BatchInput, OnboardingFailed, OnboardingInput
from limner.local.trouble import Fault, FaultKind
from tests.support.laptop import until
from tests.support.onboarding import Stack
from workflows import retries

FINISHED_JOB = ["FineTuneBatch", "JobDone", "CollectResults", "TakeResults", "FinishAll"]


@pytest.fixture(autouse=True)
def closed_gate(stack: Stack) -> Iterator[None]:
    """Nobody but the test starts anything: what goes back to the queue stays there to be seen.

    The gate's theoretical arrival time lies ahead, as after a burst. Before it opens again, the
    queue is emptied: a request whose training hangs would take a place of the laptop for good.
    """
    gate = stack.table("RequestsTableName")
    key = {"request_id": keys.GATE_ROW}
    later_ms = int(time.time() * 1000) + 3_600_000
    gate.update_item(
        Key=key,
        UpdateExpression="SET tat = :later ADD fence :one",
        ExpressionAttributeValues={":later": later_ms, ":one": 1},
    )
    yield
    for row in gate.scan(FilterExpression=Attr("queue").exists())["Items"]:
        gate.update_item(
            Key={"request_id": row["request_id"]},
            UpdateExpression="REMOVE #queue",
            ExpressionAttributeNames={"#queue": "queue"},
        )
    gate.update_item(
        Key=key,
        UpdateExpression="SET tat = :past ADD fence :one",
        ExpressionAttributeValues={":past": 0, ":one": 1},
    )


def wishes(stack: Stack, count: int, **behaviour: Any) -> list[OnboardingInput]:
    """Requests of fresh users that lie there."""
    made = [stack.wish() for _ in range(count)]
    for wish in made:
        stack.put_request(wish, **behaviour)
    return made


def outcomes(execution: dict[str, Any]) -> dict[str, int]:
    """What the execution says of its requests."""
    return dict(Counter(json.loads(execution["output"])["finished"]["outcomes"]))


def assert_done(execution: dict[str, Any], **counts: int) -> None:
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert outcomes(execution) == counts


def assert_ready(stack: Stack, wish: OnboardingInput, version: int = 1) -> None:
    record = stack.request(wish)
    assert record["status"] == "READY", record
    assert {"open", "queue", "lease_until"}.isdisjoint(record)
    model = stack.model(wish)
    assert model is not None
    assert model["live_version"] == version
    assert "active_request" not in model
    assert keys.artifact_key(wish.user_id, "default", version) in stack.artifact_keys(wish)
    assert [body["type"] for body in stack.notifications(wish)] == ["limner.onboarding.ready"]


def assert_failed(stack: Stack, wish: OnboardingInput, code: str) -> dict[str, Any]:
    record = stack.request(wish)
    assert (record["status"], record["error"]["code"]) == ("FAILED", code)
    assert "unannounced" not in record
    assert {"open", "queue", "lease_until"}.isdisjoint(record)
    (heard,) = stack.notifications(wish)
    told = OnboardingFailed.model_validate(heard)
    assert (told.code, told.fault) == (code, REGISTRY[code].fault)
    model = stack.model(wish)
    assert model is None or "active_request" not in model
    error: dict[str, Any] = record["error"]
    return error


def assert_queued_again(stack: Stack, wish: OnboardingInput) -> None:
    """Ready to be dispatched, and nothing of this batch is left with it."""
    record = stack.request(wish)
    assert record["status"] == "QUEUED", record
    assert record["attempt"] == wish.attempt + 1
    assert record["queue"] == record["open"] == keys.shard_of(wish.user_id)
    assert record["queued_at"]
    assert "owner" not in record
    model = stack.model(wish)
    assert model is not None
    assert "active_request" not in model


# -- The good ways --------------------------------------------------------------------------------


def test_three_users_share_a_job(stack: Stack) -> None:
    made = wishes(stack, 3)
    batch = stack.batch(*made)
    execution = stack.laptop.finish(stack.start_batch(batch))
    assert_done(execution, ready=3)
    for wish in made:
        assert_ready(stack, wish)
        assert stack.request(wish)["job_name"] == keys.batch_job_name(batch.batch_id, 1)
    (name,) = stack.jobs(batch)
    job = stack.job(name)
    assert job["TrainingJobStatus"] == "Completed"
    assert [channel["ChannelName"] for channel in job["InputDataConfig"]] == [
        *("tasks", "photos", "base")
    ]
    assert job.get("HyperParameters", {}) == {}
    top = [s for s in stack.states(execution) if s in FINISHED_JOB]
    assert top == FINISHED_JOB


def test_a_batch_that_has_work_for_it_uses_more_machines(stack: Stack) -> None:
    made = wishes(stack, 3)
    # Predicted: 50, 25 and 25 minutes, which two machines do within the target of an hour.
    for wish, steps in zip(made, (12_000, 6_000, 6_000), strict=True):
        stack.put_config(wish, json.dumps({"steps": steps}).encode())
    batch = stack.batch(*made)
    assert_done(stack.laptop.finish(stack.start_batch(batch)), ready=3)
    (name,) = stack.jobs(batch)
    assert stack.job(name)["ResourceConfig"]["InstanceCount"] == 2
    for wish in made:
        assert_ready(stack, wish)


def test_one_bad_request_among_good_ones_fails_by_itself(stack: Stack) -> None:
    good, bad, without = wishes(stack, 2)[0], stack.wish(), stack.wish()
    reason = "PHOTO_TOO_SMALL: 2.png is 8x8 pixels. Fix: Replace the photo."
    stack.put_request(bad, behave="fail", reason=reason)
    stack.put_request(without)
    stack.put_config(without, b"no JSON")
    execution = stack.onboard_batch(good, bad, without)
    assert_done(execution, ready=1, failed=2)
    assert_ready(stack, good)
    assert "2.png is 8x8" in assert_failed(stack, bad, "PHOTO_TOO_SMALL")["message"]
    assert_failed(stack, without, "INVALID_INPUT")


def test_a_user_who_is_ready_and_a_model_that_is_busy(stack: Stack) -> None:
    (first,) = wishes(stack, 1)
    assert_done(stack.onboard_batch(first), ready=1)
    again, other, busy = stack.wish(user_id=first.user_id), stack.wish(), stack.wish()
    for wish in (again, other, busy):
        stack.put_request(wish)
    row = {"user_id": busy.user_id, "model_row": "default", "active_request": "somebody-elses"}
    stack.table("ModelsTableName").put_item(Item=row)
    assert_done(stack.onboard_batch(again, other, busy), ready=1, ended=2)
    assert stack.request(again)["already_ready"] is True
    assert_ready(stack, other)
    record = stack.request(busy)
    assert (record["status"], record["error"]["code"]) == ("FAILED", "MODEL_BUSY")
    model = stack.model(busy)
    assert model is not None
    assert model["active_request"] == "somebody-elses"


def test_a_batch_without_anything_to_train_makes_no_job(stack: Stack) -> None:
    taken = stack.wish()
    stack.put_request(taken)
    stack.table("RequestsTableName").update_item(
        Key={"request_id": taken.request_id},
        UpdateExpression="SET #o = :other",
        ExpressionAttributeNames={"#o": "owner"},
        ExpressionAttributeValues={":other": "arn:somebody-else"},
    )
    batch = stack.batch(taken)
    assert_done(stack.laptop.finish(stack.start_batch(batch)), ended=1)
    assert stack.jobs(batch) == []
    assert stack.request(taken)["owner"] == "arn:somebody-else"


# -- The job in trouble ---------------------------------------------------------------------------


def test_a_task_that_vanishes_is_queued_again(stack: Stack) -> None:
    (good,), gone = wishes(stack, 1), stack.wish()
    stack.put_request(gone, behave="vanish")
    assert_done(stack.onboard_batch(good, gone), ready=1, requeued=1)
    assert_ready(stack, good)
    assert_queued_again(stack, gone)


def test_a_job_that_dies_half_way_loses_no_finished_request(stack: Stack) -> None:
    done = wishes(stack, 2)
    fatal, after = stack.wish(), stack.wish()
    stack.put_request(fatal, behave="die")
    stack.put_request(after)
    batch = stack.batch(*done, fatal, after)
    execution = stack.laptop.finish(stack.start_batch(batch))
    assert_done(execution, ready=2, requeued=2)
    (name,) = stack.jobs(batch)
    assert stack.job(name)["TrainingJobStatus"] == "Failed"
    for wish in done:
        assert_ready(stack, wish)
    for wish in (fatal, after):
        assert_queued_again(stack, wish)


def test_the_last_attempt_ends_with_a_name(stack: Stack) -> None:
    gone = stack.wish(attempt=retries.MAX_ATTEMPTS)
    stack.put_request(gone, behave="vanish")
    assert_done(stack.onboard_batch(gone), failed=1)
    error = assert_failed(stack, gone, "JOB_INCOMPLETE")
    assert error["retryable"] is True


def test_a_request_that_was_queued_again_is_trained_by_the_next_batch(stack: Stack) -> None:
    gone = stack.wish()
    stack.put_request(gone, behave="vanish")
    assert_done(stack.onboard_batch(gone), requeued=1)
    prefix = keys.uploads_prefix(gone.user_id, gone.request_id)
    stack.laptop.s3.delete_object(Bucket=stack.outputs["BucketName"], Key=f"{prefix}behave")
    again = gone.model_copy(update={"attempt": 2})
    execution = stack.onboard_batch(again)
    assert_done(execution, ready=1)
    assert_ready(stack, again, version=2)


def test_throttled_calls_are_repeated(stack: Stack) -> None:
    stack.laptop.control.trouble(throttle_next=3)
    (wish,) = wishes(stack, 1)
    execution = stack.onboard_batch(wish)
    assert_done(execution, ready=1)
    assert stack.failed_tries(execution) == ["SageMaker.AmazonSageMakerException"] * 3


def test_a_full_quota_is_waited_for_by_all(stack: Stack) -> None:
    stack.laptop.control.trouble(quota_full=True)
    made = wishes(stack, 2)
    batch = stack.batch(*made)
    arn = stack.start_batch(batch)
    until(
        lambda: {stack.request(wish)["status"] for wish in made},
        lambda seen: seen == {"WAITING_FOR_CAPACITY"},
    )
    stack.laptop.control.trouble()
    execution = stack.laptop.finish(arn)
    assert_done(execution, ready=2)
    assert stack.jobs(batch) == [keys.batch_job_name(batch.batch_id, 1)]
    assert stack.states(execution).count("PackTasks") == 1, "no job was made: the files stay"


def test_a_quota_that_stays_full_gives_the_requests_back(stack: Stack) -> None:
    stack.laptop.control.clock(0)
    stack.laptop.control.trouble(quota_full=True)
    first, last = stack.wish(), stack.wish(attempt=retries.MAX_ATTEMPTS)
    for wish in (first, last):
        stack.put_request(wish)
    execution = stack.onboard_batch(first, last)
    assert_done(execution, requeued=1, failed=1)
    assert stack.states(execution).count("CountWait") == retries.BATCH_QUOTA_WAITS
    assert_queued_again(stack, first)
    assert_failed(stack, last, "QUOTA_EXCEEDED")


def test_no_capacity_takes_the_next_instance_type(stack: Stack) -> None:
    stack.laptop.control.trouble(capacity_failures=1)
    made = wishes(stack, 2)
    batch = stack.batch(*made)
    execution = stack.laptop.finish(stack.start_batch(batch))
    assert_done(execution, ready=2)
    names = stack.jobs(batch)
    assert names == [keys.batch_job_name(batch.batch_id, number) for number in (1, 2)]
    types = [stack.job(name)["ResourceConfig"]["InstanceType"] for name in names]
    assert len(set(types)) == 2
    for wish in made:
        assert_ready(stack, wish)
        assert stack.request(wish)["job_name"] == names[1]


def test_no_capacity_at_all_gives_the_requests_back(stack: Stack) -> None:
    stack.laptop.control.trouble(capacity_failures=-1)
    first, last = stack.wish(), stack.wish(attempt=retries.MAX_ATTEMPTS)
    for wish in (first, last):
        stack.put_request(wish)
    assert_done(stack.onboard_batch(first, last), requeued=1, failed=1)
    assert_queued_again(stack, first)
    assert_failed(stack, last, "NO_CAPACITY")


def test_a_lost_reply_buys_one_job_which_is_adopted(stack: Stack) -> None:
    stack.laptop.control.trouble(
        faults=[Fault("sagemaker:CreateTrainingJob", kind=FaultKind.LOST_REPLY)]
    )
    made = wishes(stack, 2, seconds=0.3)
    batch = stack.batch(*made)
    execution = stack.laptop.finish(stack.start_batch(batch))
    assert_done(execution, ready=2)
    assert "AwaitJob" in stack.states(execution)
    assert stack.jobs(batch) == [keys.batch_job_name(batch.batch_id, 1)]


# -- Functions and writes in trouble --------------------------------------------------------------


def test_results_are_waited_for_when_other_functions_would_have_given_up(stack: Stack) -> None:
    """A training that was paid for is not thrown away because Lambda was out of order."""
    stack.laptop.control.clock(0)
    faults = [Fault("lambda:Invoke", matching='"failure"', times=9)]
    stack.laptop.control.trouble(faults=faults)
    batch = stack.batch(*wishes(stack, 2))
    execution = stack.laptop.finish(stack.start_batch(batch))
    assert stack.laptop.control.trouble_left()["lambda:Invoke"] == 0
    assert_done(execution, ready=2)
    assert stack.jobs(batch) == [keys.batch_job_name(batch.batch_id, 1)]


@pytest.mark.parametrize(
    "matching",
    [
        pytest.param("longest_s", id="PackTasks"),
        pytest.param("TRAINING", id="RecordBatchAttempt"),
    ],
)
def test_a_function_that_never_answers_gives_the_requests_back(stack: Stack, matching: str) -> None:
    stack.laptop.control.clock(0)
    stack.laptop.control.trouble(faults=[Fault("lambda:Invoke", matching=matching, times=9)])
    (wish,) = wishes(stack, 1)
    batch = stack.batch(wish)
    execution = stack.laptop.finish(stack.start_batch(batch))
    assert_done(execution, requeued=1)
    assert stack.laptop.control.trouble_left()["lambda:Invoke"] == 0
    assert stack.jobs(batch) == []
    assert_queued_again(stack, wish)


@pytest.mark.parametrize(
    ("operation", "matching"),
    [
        ("dynamodb:UpdateItem", "attempt"),  # ClaimRequest
        ("dynamodb:UpdateItem", "last_version"),  # ReserveVersion
        ("lambda:Invoke", "longest_s"),  # PackTasks
        ("lambda:Invoke", "TRAINING"),  # RecordBatchAttempt
        ("lambda:Invoke", "limner-batch"),  # whichever comes first
        ("dynamodb:TransactWriteItems", "artifact_key"),  # RecordModel
        ("s3:CopyObject", ""),  # PublishArtifact
        ("dynamodb:TransactWriteItems", "live_version"),  # ActivateModel
    ],
)
def test_a_write_whose_reply_was_lost_is_recognised(
    stack: Stack, operation: str, matching: str
) -> None:
    made = wishes(stack, 2)
    stack.laptop.control.trouble(
        faults=[Fault(operation, kind=FaultKind.LOST_REPLY, matching=matching)]
    )
    execution = stack.onboard_batch(*made)
    assert stack.laptop.control.trouble_left().get(operation, 0) == 0, "the fault has struck"
    assert_done(execution, ready=2)
    for wish in made:
        assert_ready(stack, wish)
        model = stack.model(wish)
        assert model is not None
        assert model["last_version"] == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_reply_of_requeue_is_recognised(stack: Stack, times: int) -> None:
    gone = stack.wish()
    stack.put_request(gone, behave="vanish")
    stack.laptop.control.trouble(
        faults=[
            Fault(
                "dynamodb:TransactWriteItems",
                kind=FaultKind.LOST_REPLY,
                matching="queued_at",
                times=times,
            )
        ]
    )
    assert_done(stack.onboard_batch(gone), requeued=1)
    assert_queued_again(stack, gone)


def test_a_claim_that_fails_is_that_request_s_own_failure(stack: Stack) -> None:
    stack.laptop.control.clock(0)
    made = wishes(stack, 2)
    stack.laptop.control.trouble(
        faults=[Fault("dynamodb:UpdateItem", matching="last_version", times=9)]
    )
    execution = stack.onboard_batch(*made)
    # Nine failures shared by two requests: at most one of them has used up its retries.
    assert execution["status"] == "SUCCEEDED"
    assert sum(outcomes(execution).values()) == 2
    for wish in made:
        assert stack.request(wish)["status"] in {"READY", "FAILED"}


def test_a_failure_that_cannot_be_recorded_leaves_the_batch_to_reconcile(stack: Stack) -> None:
    stack.laptop.control.clock(0)
    bad, good = stack.wish(), stack.wish()
    stack.put_request(bad, behave="fail")
    stack.put_request(good)
    stack.laptop.control.trouble(
        faults=[Fault("lambda:Invoke", times=None, matching="PHOTO_TOO_SMALL")]
    )
    execution = stack.onboard_batch(bad, good)
    assert (execution["status"], execution["error"]) == ("FAILED", "AWS_ERROR")
    assert stack.states(execution)[-1] == "BatchUnsettled"
    assert_ready(stack, good)


# -- The execution in trouble ---------------------------------------------------------------------


def test_a_batch_that_is_stopped_stops_its_job(stack: Stack) -> None:
    made = wishes(stack, 2, behave="hang")
    batch = stack.batch(*made)
    arn = stack.start_batch(batch)
    name = keys.batch_job_name(batch.batch_id, 1)
    until(lambda: stack.jobs(batch), lambda jobs: jobs == [name])
    stack.laptop.states.stop_execution(executionArn=arn, error="EXECUTION_STOPPED", cause="enough")
    assert stack.laptop.finish(arn)["status"] == "ABORTED"
    until(
        lambda: stack.job(name),
        lambda job: job["TrainingJobStatus"] in ("Stopped", "Completed", "Failed"),
    )
    # The rule on its end gives the requests back.
    for wish in made:
        until(lambda wish=wish: stack.request(wish)["status"], lambda status: status == "QUEUED")
        assert_queued_again(stack, wish)
        assert stack.artifact_keys(wish) == []


def test_the_same_batch_twice_is_one_execution(stack: Stack) -> None:
    made = wishes(stack, 2)
    batch = stack.batch(*made)
    arn = stack.start_batch(batch)
    assert stack.start_batch(batch) == arn
    assert_done(stack.laptop.finish(arn), ready=2)


def test_a_request_whose_client_cancels_it_ends_alone(stack: Stack) -> None:
    """As ``Limner.cancel`` asks for it: the batch goes on for the others."""
    kept, lost = wishes(stack, 2, seconds=3)
    batch: BatchInput = stack.batch(kept, lost)
    arn = stack.start_batch(batch)
    until(lambda: stack.jobs(batch), lambda jobs: len(jobs) == 1)
    stack.table("RequestsTableName").update_item(
        Key={"request_id": lost.request_id},
        UpdateExpression="SET cancel_requested = :true",
        ExpressionAttributeValues={":true": True},
    )
    stack.laptop.control.clock(0)
    assert_done(stack.laptop.finish(arn), ready=1, failed=1)
    assert_ready(stack, kept)
    record = stack.request(lost)
    assert (record["status"], record["error"]["code"]) == ("CANCELLED", "EXECUTION_STOPPED")
    assert stack.artifact_keys(lost) == []
    (heard,) = stack.notifications(lost)
    assert heard["code"] == "EXECUTION_STOPPED"


def test_a_request_that_was_cancelled_meanwhile_stays_so(stack: Stack) -> None:
    kept, lost = wishes(stack, 2, seconds=3)
    batch: BatchInput = stack.batch(kept, lost)
    arn = stack.start_batch(batch)
    until(lambda: stack.jobs(batch), lambda jobs: len(jobs) == 1)
    other = f"arn:aws:states:::execution:{uuid.uuid4().hex}"
    stack.table("RequestsTableName").update_item(
        Key={"request_id": lost.request_id},
        UpdateExpression="SET #o = :other, #s = :cancelled",
        ExpressionAttributeNames={"#o": "owner", "#s": "status"},
        ExpressionAttributeValues={":other": other, ":cancelled": "CANCELLED"},
    )
    stack.laptop.control.clock(0)
    assert_done(stack.laptop.finish(arn), ready=1, ended=1)
    assert_ready(stack, kept)
    record = stack.request(lost)
    assert (record["status"], record["owner"]) == ("CANCELLED", other)
    assert stack.artifact_keys(lost) == []
