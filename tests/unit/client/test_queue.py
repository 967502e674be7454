"""Requests that wait in the queue, and requests that share a batch."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.stub import Stubber

from limner.contracts import keys
from limner.contracts.statuses import RequestStatus
from limner.registry import Request
from tests.unit.client.test_onboard import Crash, crash_before
from tests.unit.client.test_progress import job, metric
from tests.unit.client.world import World, photos

BATCH = "arn:aws:states:us-east-1:123456789012:execution:onboard_batch:b1"


def in_batch(aws: World, **values: Any) -> Request:
    """A request as a batch has claimed it."""
    return aws.put_request(
        **{
            "request_id": "r1",
            "user_id": "alice",
            "status": "TRAINING",
            "owner": BATCH,
            "shard": keys.shard_of("alice"),
            "open": keys.shard_of("alice"),
            **values,
        }
    )


@pytest.mark.parametrize("token", [None, "signup"])
def test_a_queued_request_is_started_by_nobody(aws: World, token: str | None) -> None:
    request = aws.limner.onboard("alice", photos(), client_token=token, queue=True)
    assert request.status is RequestStatus.QUEUED
    assert request.queue == request.shard == request.open == keys.shard_of("alice")
    assert request.queued_at is not None
    assert aws.limner.request(request.request_id) == request
    assert aws.executions() == []
    assert len(aws.uploaded()) == 3
    assert aws.config(request.request_id).steps == request.steps == 160


def test_a_request_stays_in_the_queue_whatever_is_repeated(aws: World) -> None:
    request = aws.limner.onboard("alice", photos(), client_token="t", queue=True)
    for queue in (True, False):
        again = aws.limner.onboard("alice", photos(), client_token="t", queue=queue)
        assert again == request
    assert aws.executions() == []


def test_a_crash_before_the_queue_is_mended_by_the_same_call(aws: World) -> None:
    heal = crash_before(aws, "dynamodb", "UpdateItem")
    with pytest.raises(Crash):
        aws.limner.onboard("alice", photos(), client_token="t", queue=True)
    heal()
    (before,) = aws.limner.list_requests("alice")
    assert before.queue is None
    assert aws.limner.onboard("alice", photos(), client_token="t", queue=True).queue is not None


def test_what_dispatch_started_is_what_is_followed(aws: World) -> None:
    request = aws.limner.onboard("alice", photos(), queue=True)
    assert aws.limner.progress(request.request_id).states == ()
    claimed = aws.move(request, status="TRAINING", queue=None, attempt=3)
    name = keys.execution_name(request.request_id, 3)
    assert aws.limner.execution_arn(claimed) == aws.deployment.execution_arn(name)


def test_waiting_in_the_queue_is_no_error(aws: World) -> None:
    request = aws.limner.onboard("alice", photos(), queue=True)
    aws.clock.after(60, lambda: aws.move(request, status="TRAINING", queue=None, owner=BATCH))
    aws.clock.after(200, lambda: aws.move(request, status="QUEUED", attempt=2))
    aws.clock.after(300, lambda: aws.move(request, status="READY", version=1, queue=None))
    with Stubber(aws.clients.stepfunctions):  # nothing is asked of any execution
        ready = aws.limner.wait(request.request_id, timeout_s=600, poll_s=5)
    assert ready.status is RequestStatus.READY


@pytest.mark.parametrize("status", ["QUEUED", "REGISTERED"])
def test_cancel_takes_a_request_out_of_every_index(aws: World, status: str) -> None:
    queued = aws.limner.onboard("alice", photos(), queue=True)
    request = aws.move(queued, status=status, queue=queued.queue if status == "QUEUED" else None)
    with Stubber(aws.clients.stepfunctions):
        cancelled = aws.limner.cancel(request.request_id)
    assert cancelled.status is RequestStatus.CANCELLED
    assert cancelled.error is not None
    assert cancelled.error.fault == "caller"
    row = aws.row(request.request_id)
    assert row is not None
    assert not {"open", "queue", "lease_until"} & set(row)


def test_cancel_never_stops_a_batch(aws: World) -> None:
    in_batch(aws)
    with Stubber(aws.clients.stepfunctions):
        request = aws.limner.cancel("r1")
    assert (request.status, request.cancel_requested) == (RequestStatus.TRAINING, True)
    assert request.open is not None
    assert not aws.limner.cancel(in_batch(aws, status="READY").request_id).cancel_requested


def test_cancel_meets_a_batch_that_claims_at_the_same_time(aws: World) -> None:
    request = aws.limner.onboard("alice", photos(), queue=True)

    def claim(**_: object) -> None:
        aws.clients.dynamodb.meta.events.unregister("before-send.dynamodb.UpdateItem", claim)
        aws.move(request, status="TRAINING", queue=None, owner=BATCH)

    aws.clients.dynamodb.meta.events.register_first("before-send.dynamodb.UpdateItem", claim)
    found = aws.limner.cancel(request.request_id)
    assert (found.status, found.cancel_requested) == (RequestStatus.TRAINING, True)


def test_a_batch_shows_the_job_and_not_the_others_states(aws: World) -> None:
    in_batch(aws, job_name="limner-batch-b1-1", steps=160)
    told = [metric("train:step", 12.0), metric("train:loss", 0.5)]
    with (
        Stubber(aws.clients.stepfunctions),
        Stubber(aws.clients.sagemaker) as sagemaker,
    ):
        answer = job("limner-batch-b1-1", FinalMetricDataList=told)
        sagemaker.add_response("describe_training_job", answer)
        progress = aws.limner.progress("r1")
    assert progress.states == ()
    assert progress.job is not None
    assert (progress.job.secondary_status, progress.job.step, progress.job.loss) == (
        "Training",
        None,
        None,
    )


def test_an_attempt_that_was_put_back_starts_under_its_own_name(aws: World) -> None:
    request = aws.limner.onboard("alice", photos(), client_token="t")
    aws.move(request, attempt=2)
    aws.limner.onboard("alice", photos(), client_token="t")
    assert sorted(aws.executions()) == [f"{request.request_id}-{n}" for n in (1, 2)]
