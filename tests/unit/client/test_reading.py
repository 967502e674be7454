"""Status, lists over more than one page, waiting, cancelling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from limner.client import Limner
from limner.client.polling import EXECUTION_CHECK_S, RECORD_GRACE_S
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import ALLOWED_FROM, TERMINAL, RequestStatus
from limner.registry import RequestFailure
from tests.unit.client.world import World, photos, session

MANY = 23


def pages_read(aws: World) -> list[str]:
    """A list that grows by one for each Query that is sent from now on."""
    sent: list[str] = []
    aws.clients.dynamodb.meta.events.register(
        "before-send.dynamodb.Query", lambda request, **_: sent.append(request.url)
    )
    return sent


def test_requests_come_newest_first_and_page_by_page(aws: World) -> None:
    for number in range(MANY):
        aws.put_request(
            request_id=f"r{number}",
            user_id="alice",
            status="QUEUED",
            created_at=f"2026-01-01T00:00:{number:02}.000Z",
        )
    aws.put_request(request_id="other", user_id="bob", status="QUEUED")
    sent = pages_read(aws)

    found = aws.limner.list_requests("alice", page_size=5)
    assert sent == []
    assert next(found).request_id == f"r{MANY - 1}"
    assert len(sent) == 1
    assert [request.request_id for request in found] == [f"r{n}" for n in range(MANY - 2, -1, -1)]
    assert len(sent) == 5


def test_models_come_by_name_without_their_versions(aws: World) -> None:
    for number in range(MANY):
        aws.put_model("alice", f"m{number:02}", live=number % 3)
    aws.put_model("bob")
    sent = pages_read(aws)

    found = list(aws.limner.list_models("alice", page_size=5))

    assert [model.model_id for model in found] == [f"m{number:02}" for number in range(MANY)]
    assert [model.live_version for model in found[:3]] == [None, 1, 2]
    assert len(sent) > 5


def test_an_error_in_the_middle_of_a_list_is_translated(aws: World) -> None:
    for number in range(4):
        aws.put_request(request_id=f"r{number}", user_id="alice", status="QUEUED")
    found = aws.limner.list_requests("alice", page_size=2)
    next(found)
    aws.clients.dynamodb.delete_table(TableName="requests")
    with pytest.raises(LimnerError) as caught:
        list(found)
    assert caught.value.code == "NOT_DEPLOYED"


def test_status(aws: World) -> None:
    for number in range(8):
        aws.put_request(
            request_id=f"r{number}",
            user_id="alice",
            model_id="dog" if number % 2 else "default",
            status="QUEUED",
            created_at=f"2026-01-01T00:00:0{number}.000Z",
        )
    aws.put_model("alice", "dog", live=2)

    dog = aws.limner.status("alice", "dog")
    assert (dog.is_ready, dog.live_version, dog.target_model) == (True, 2, "alice/dog/v2.tar.gz")
    assert [request.request_id for request in dog.requests] == ["r7", "r5", "r3", "r1"]
    default = aws.limner.status("alice")
    assert (default.is_ready, default.live_version) == (False, None)
    with pytest.raises(LimnerError, match="alice has no model cat") as caught:
        aws.limner.status("alice", "cat")
    assert caught.value.code == "MODEL_NOT_FOUND"


def test_an_unknown_request(aws: World) -> None:
    for call in (aws.limner.request, aws.limner.wait, aws.limner.progress, aws.limner.cancel):
        with pytest.raises(LimnerError) as caught:
            call("nobody")
        assert caught.value.code == "REQUEST_NOT_FOUND"


def test_wait_returns_the_ready_request(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    aws.clock.after(7, lambda: aws.move(request, status="READY", version=1, owner="arn"))
    ready = aws.limner.wait(request.request_id, poll_s=2)
    assert (ready.status, ready.version) == (RequestStatus.READY, 1)
    assert aws.clock.sleeps == [2] * 4


def test_wait_raises_the_requests_own_error(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    failure = RequestFailure(code="TRAINING_DIVERGED", message="loss is nan at step 3")
    aws.move(request, status="FAILED", error=failure, owner="arn")
    with pytest.raises(LimnerError, match="nan at step 3") as caught:
        aws.limner.wait(request.request_id)
    assert caught.value.code == "TRAINING_DIVERGED"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"status": "CANCELLED"}, "EXECUTION_STOPPED"),
        ({"status": "FAILED"}, "TRAINING_FAILED"),
        ({"status": "FAILED", "error": {"code": "FROM_THE_FUTURE"}}, "TRAINING_FAILED"),
    ],
)
def test_wait_raises_for_records_without_a_known_error(
    aws: World, values: dict[str, Any], code: str
) -> None:
    aws.put_request(request_id="r1", user_id="alice", **values)
    with pytest.raises(LimnerError) as caught:
        aws.limner.wait("r1")
    assert caught.value.code == code


def test_wait_ends_at_its_deadline_and_not_later(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    with pytest.raises(LimnerError, match=r"is still QUEUED after 4\.5 s; it goes on") as caught:
        aws.limner.wait(request.request_id, timeout_s=4.5, poll_s=2)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert aws.clock.sleeps == [2, 2, 0.5]


def test_wait_notices_an_execution_that_ended_without_its_record(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    aws.clients.stepfunctions.stop_execution(executionArn=aws.limner.execution_arn(request))
    with pytest.raises(LimnerError, match="was stopped") as caught:
        aws.limner.wait(request.request_id, timeout_s=600, poll_s=1)
    assert caught.value.code == "EXECUTION_STOPPED"
    waited_s = sum(aws.clock.sleeps)
    assert RECORD_GRACE_S <= waited_s <= RECORD_GRACE_S + 2 * EXECUTION_CHECK_S


def test_wait_gives_the_rule_time_to_end_the_record(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    aws.clients.stepfunctions.stop_execution(executionArn=aws.limner.execution_arn(request))
    failure = RequestFailure(code="EXECUTION_STOPPED", message="by the operator")
    aws.clock.after(12, lambda: aws.move(request, status="CANCELLED", error=failure))
    with pytest.raises(LimnerError, match="by the operator"):
        aws.limner.wait(request.request_id, timeout_s=600, poll_s=1)


def test_cancel_stops_the_execution(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    assert aws.limner.cancel(request.request_id).status is RequestStatus.QUEUED
    stopped = aws.clients.stepfunctions.describe_execution(
        executionArn=aws.limner.execution_arn(request)
    )
    assert stopped["status"] == "ABORTED"


def test_cancel_ends_a_request_that_was_never_started(aws: World) -> None:
    aws.put_request(request_id="r1", user_id="alice", status="QUEUED")
    cancelled = aws.limner.cancel("r1")
    assert cancelled.status is RequestStatus.CANCELLED
    assert cancelled.error is not None
    assert cancelled.error.code == "EXECUTION_STOPPED"
    assert cancelled.updated_at > cancelled.created_at


@pytest.mark.parametrize("status", list(RequestStatus))
@pytest.mark.parametrize("owned", [False, True])
def test_cancel_moves_only_what_is_allowed_and_not_owned(
    aws: World, status: RequestStatus, owned: bool
) -> None:
    owner = aws.deployment.execution_arn("gone") if owned else None
    before = aws.put_request(request_id="r1", user_id="alice", status=status, owner=owner)
    after = aws.limner.cancel("r1")
    if status in ALLOWED_FROM[RequestStatus.CANCELLED] and not owned:
        assert after.status is RequestStatus.CANCELLED
        assert status not in TERMINAL
    else:
        assert after == before


def test_a_closed_laptop_is_named(aws: World) -> None:
    dynamodb = session().client(
        "dynamodb",
        endpoint_url="http://127.0.0.1:9",
        config=Config(retries={"mode": "standard", "total_max_attempts": 1}),
    )
    limner = Limner(replace(aws.clients, dynamodb=dynamodb), aws.deployment)

    def refuse(request: Any, **_: object) -> None:
        raise EndpointConnectionError(endpoint_url=request.url)

    dynamodb.meta.events.register_first("before-send.dynamodb", refuse)
    with pytest.raises(LimnerError, match=r"Nothing answers at http://127\.0\.0\.1:9/") as caught:
        limner.request("r1")
    assert caught.value.code == "LAPTOP_NOT_RUNNING"
