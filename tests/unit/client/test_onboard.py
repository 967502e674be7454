"""Onboarding: every step once, whatever breaks between two of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from limner.client import TrainingConfig
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.onboarding import OnboardingInput
from limner.contracts.statuses import RequestStatus
from tests.unit.client.world import World, photo, photos


class Crash(BaseException):
    """The process dies here; nothing in the client may catch it."""


def crash(**_: object) -> None:
    raise Crash


def test_onboard_uploads_records_and_starts(aws: World, tmp_path: Path) -> None:
    jpeg = tmp_path / "me.jpeg"
    jpeg.write_bytes(photo(9, "JPEG"))
    config = TrainingConfig(steps=7, subject="dog")
    request = aws.limner.onboard("alice", [*photos(3), jpeg], model_id="dog", config=config)

    assert request.status is RequestStatus.QUEUED
    assert request.photos == 4
    assert aws.limner.request(request.request_id) == request
    uploaded = aws.uploaded()
    assert len(uploaded) == 4
    assert all(key.startswith(f"uploads/alice/{request.request_id}/") for key in uploaded)
    assert aws.uploaded("") == [f"configs/{request.request_id}/config.json", *uploaded]
    types = {
        aws.clients.s3.head_object(Bucket="limner-test", Key=key)["ContentType"]: key[-4:]
        for key in uploaded
    }
    assert types == {"image/png": ".png", "image/jpeg": ".jpg"}

    assert aws.executions() == [f"{request.request_id}-1"]
    started = aws.clients.stepfunctions.describe_execution(
        executionArn=aws.limner.execution_arn(request)
    )
    wish = OnboardingInput.model_validate_json(started["input"])
    assert (wish.user_id, wish.model_id, wish.retrain) == ("alice", "dog", False)
    assert aws.config(request.request_id) == config
    assert "dog" not in started["input"].replace('"model_id":"dog"', "")  # it holds no prompts
    assert set(json.loads(started["input"])) == set(OnboardingInput.model_fields)


def test_the_same_token_and_input_is_the_same_request(aws: World) -> None:
    first = aws.limner.onboard("alice", photos(4), client_token="signup")
    again = aws.limner.onboard("alice", list(reversed(photos(4))), client_token="signup")
    assert again == first
    assert len(aws.executions()) == 1
    assert len(aws.uploaded()) == 4


def test_without_a_token_each_call_is_a_request(aws: World) -> None:
    ids = {aws.limner.onboard("alice", photos()).request_id for _ in range(2)}
    assert len(ids) == len(aws.executions()) == 2


def test_the_token_of_another_user_is_another_request(aws: World) -> None:
    alice = aws.limner.onboard("alice", photos(), client_token="signup")
    bob = aws.limner.onboard("bob", photos(), client_token="signup")
    assert alice.request_id != bob.request_id


@pytest.mark.parametrize(
    "other",
    [
        {"photos": photos(4)},
        {"retrain": True},
        {"model_id": "cat"},
        {"config": TrainingConfig(steps=9)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_same_token_with_other_input_is_a_conflict(aws: World, other: dict[str, Any]) -> None:
    aws.limner.onboard("alice", photos(), client_token="signup")
    before = aws.uploaded()
    with pytest.raises(LimnerError) as caught:
        aws.limner.onboard("alice", **{"photos": photos(), **other}, client_token="signup")
    assert caught.value.code == "REQUEST_CONFLICT"
    assert aws.uploaded() == before  # nothing reaches the photos of a request that may be training
    assert len(aws.executions()) == 1


def test_a_request_that_has_moved_on_is_returned_as_it_is(aws: World) -> None:
    request = aws.limner.onboard("alice", photos(), client_token="signup")
    aws.move(request, status="READY", version=1, owner="arn")
    again = aws.limner.onboard("alice", photos(), client_token="signup")
    assert (again.status, again.version) == (RequestStatus.READY, 1)
    assert len(aws.executions()) == 1


# Each step, and the crash right before or right after it: the call is repeated and mends it.
STEPS = [
    ("s3", "PutObject"),
    ("dynamodb", "PutItem"),
    ("s3", "ListObjectsV2"),
    ("stepfunctions", "StartExecution"),
]


def crash_before(aws: World, service: str, step: str) -> Callable[[], None]:
    events = getattr(aws.clients, service).meta.events
    name = f"before-send.{service}.{step}"
    events.register_first(name, crash)
    return lambda: events.unregister(name, crash)


def crash_after(aws: World, service: str, step: str) -> Callable[[], None]:
    events = getattr(aws.clients, service).meta.events
    name = f"after-call.{service}.{step}"
    events.register(name, crash)
    return lambda: events.unregister(name, crash)


@pytest.mark.parametrize(("service", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("injure", [crash_before, crash_after])
def test_a_crash_between_the_steps_is_mended_by_the_same_call(
    aws: World, service: str, step: str, injure: Callable[..., Callable[[], None]]
) -> None:
    heal = injure(aws, service, step)
    with pytest.raises(Crash):
        aws.limner.onboard("alice", photos(5), client_token="signup")
    heal()

    request = aws.limner.onboard("alice", photos(5), client_token="signup")

    assert request.status is RequestStatus.QUEUED
    assert aws.executions() == [f"{request.request_id}-1"]
    prefix = keys.uploads_prefix("alice", request.request_id)
    assert len(aws.uploaded(prefix)) == len(aws.uploaded()) == 5
    assert aws.config(request.request_id) == TrainingConfig()


@pytest.mark.parametrize("queue", [False, True])
def test_a_broken_off_call_with_the_same_token_leaves_nothing_to_train_on(
    aws: World, queue: bool
) -> None:
    heal = crash_before(aws, "dynamodb", "PutItem")
    with pytest.raises(Crash):
        other = TrainingConfig(steps=3)
        photos_ = photos(4, first=20)
        aws.limner.onboard("alice", photos_, client_token="signup", config=other, queue=queue)
    heal()
    assert len(aws.uploaded()) == 4

    request = aws.limner.onboard("alice", photos(3), client_token="signup", queue=queue)

    assert len(aws.uploaded()) == 3
    assert aws.config(request.request_id) == TrainingConfig()


@pytest.mark.parametrize(("service", "step"), [STEPS[1], STEPS[3]], ids=["PutItem", "Start"])
def test_a_write_whose_reply_was_lost_is_recognised_as_ours(
    aws: World, service: str, step: str
) -> None:
    tries = []

    def lose_first_reply(request: Any, **_: object) -> None:
        tries.append(request.url)
        if len(tries) == 1:
            raise ConnectionClosedError(endpoint_url=request.url)

    # Last: moto has carried out the call before its reply is lost.
    events = getattr(aws.clients, service).meta.events
    events.register_last(f"before-send.{service}.{step}", lose_first_reply)

    request = aws.limner.onboard("alice", photos())

    assert len(tries) == 2
    assert request.status is RequestStatus.QUEUED
    assert aws.executions() == [f"{request.request_id}-1"]


def test_a_photo_that_goes_away_after_the_check_is_named(aws: World, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path, data in zip(paths, photos(12), strict=True):
        path.write_bytes(data)
    sent = []

    def remove_the_rest(request: Any, **_: object) -> None:
        sent.append(request.url)
        for path in paths:
            path.unlink(missing_ok=True)

    # Four uploads at once may have opened their files by then, not twelve.
    aws.clients.s3.meta.events.register_first("before-send.s3.PutObject", remove_the_rest)
    with pytest.raises(LimnerError, match=r"\d+\.png: No such file") as caught:
        aws.limner.onboard("alice", paths)
    assert caught.value.code == "INVALID_INPUT"
    assert 1 <= len(sent) < 12
    assert aws.executions() == []


def test_s3_is_told_what_the_checked_bytes_are(aws: World) -> None:
    sent: dict[str, str] = {}

    def look(request: Any, **_: object) -> None:
        if "/configs/" in request.url:
            return
        digest = base64.b64decode(request.headers["x-amz-checksum-sha256"])
        sent[request.url.rpartition("/")[2]] = digest.hex()

    aws.clients.s3.meta.events.register("before-send.s3.PutObject", look)
    aws.limner.onboard("alice", photos(3))
    assert {name: f"{digest[:20]}.png" for name, digest in sent.items()} == {n: n for n in sent}
    assert len(sent) == 3


@pytest.mark.parametrize(
    ("user_id", "model_id"), [("../bob", "default"), ("a/b", "default"), ("alice", "x#v1")]
)
def test_malformed_ids_touch_nothing(aws: World, user_id: str, model_id: str) -> None:
    with pytest.raises(LimnerError) as caught:
        aws.limner.onboard(user_id, photos(), model_id=model_id)
    assert caught.value.code == "INVALID_INPUT"
    assert aws.uploaded() == []


def test_bad_photos_touch_nothing(aws: World) -> None:
    with pytest.raises(LimnerError, match="Photo 2 is not a PNG"):
        aws.limner.onboard("alice", [photo(1), b"text", photo(2)])
    assert aws.uploaded() == []
    assert aws.executions() == []


def test_threads_share_one_client(aws: World) -> None:
    users = [f"user-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(lambda user: aws.limner.onboard(user, photos()), users))
    assert [request.user_id for request in requests] == users
    assert len(aws.executions()) == len(users)
