"""The machine of batches on moto: inline Map, one job for several requests, each its own end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from limner.contracts import keys
from limner.contracts.onboarding import OnboardingInput
from tests.support.engines.moto_stack import MotoStack, definition, moto_stack


@pytest.fixture
def batch_stack() -> Iterator[MotoStack]:
    with moto_stack({"onboard_batch": definition("onboard_batch")}) as stack:
        yield stack


def put(stack: MotoStack, behave: str = "ok", **changes: Any) -> OnboardingInput:
    wish = stack.wish(**changes)
    stack.put_request(wish, behave=behave)
    return wish


def statuses(stack: MotoStack, *wishes: OnboardingInput) -> list[str]:
    return [stack.request(wish)["status"] for wish in wishes]


def jobs(stack: MotoStack, *wishes: OnboardingInput) -> list[str]:
    name = keys.batch_job_name(stack.batch(*wishes).batch_id, 1).rpartition("-")[0]
    listed = stack.laptop.sagemaker.list_training_jobs(NameContains=name)
    return sorted(job["TrainingJobName"] for job in listed["TrainingJobSummaries"])


def assert_live(stack: MotoStack, wish: OnboardingInput) -> None:
    model = stack.model(wish)
    assert model is not None
    assert model["live_version"] == 1
    assert "active_request" not in model
    assert stack.artifact_keys(wish) == [keys.artifact_key(wish.user_id, "default", 1)]


def test_one_job_makes_several_models(batch_stack: MotoStack) -> None:
    wishes = [put(batch_stack) for _ in range(3)]
    execution = batch_stack.onboard_batch(*wishes)
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert statuses(batch_stack, *wishes) == ["READY"] * 3
    assert len(jobs(batch_stack, *wishes)) == 1
    for wish in wishes:
        assert_live(batch_stack, wish)
    states = batch_stack.states(execution)
    assert states.count("Onboarded") == 3
    assert states[-2:] == ["IsAllSettled", "BatchDone"]


def test_a_failed_task_is_its_own_request_s_failure(batch_stack: MotoStack) -> None:
    good, bad = put(batch_stack), put(batch_stack, behave="fail")
    execution = batch_stack.onboard_batch(good, bad)
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert statuses(batch_stack, good, bad) == ["READY", "FAILED"]
    assert batch_stack.request(bad)["error"]["code"] == "PHOTO_TOO_SMALL"
    assert_live(batch_stack, good)
    (told,) = batch_stack.notifications(bad)
    assert told["code"] == "PHOTO_TOO_SMALL"


def test_a_poor_model_is_not_published_and_its_user_is_told(batch_stack: MotoStack) -> None:
    good, poor = put(batch_stack), put(batch_stack, behave="poor")
    execution = batch_stack.onboard_batch(good, poor)
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert statuses(batch_stack, good, poor) == ["READY", "FAILED"]
    assert batch_stack.artifact_keys(poor) == []
    assert "similarity_gain is -0.5" in batch_stack.request(poor)["error"]["message"]
    (told,) = batch_stack.notifications(poor)
    assert (told["type"], told["code"]) == ("limner.onboarding.failed", "QUALITY_TOO_LOW")
    model = batch_stack.model(poor)
    assert model is not None
    assert not {"live_version", "active_request"} & model.keys()


def test_what_a_job_left_undone_is_queued_again(batch_stack: MotoStack) -> None:
    """The job fails in the middle: what is finished is finished."""
    done, undone = put(batch_stack), put(batch_stack, behave="die")
    execution = batch_stack.onboard_batch(done, undone)
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert statuses(batch_stack, done, undone) == ["READY", "QUEUED"]
    row = batch_stack.request(undone)
    assert (row["attempt"], row["queue"]) == (2, keys.shard_of(undone.user_id))
    assert "owner" not in row
    assert "active_request" not in (batch_stack.model(undone) or {})


def test_a_batch_takes_the_next_machine_when_there_is_no_capacity(
    batch_stack: MotoStack,
) -> None:
    wishes = [put(batch_stack), put(batch_stack)]
    batch_stack.laptop.control.trouble(capacity_failures=1)
    execution = batch_stack.onboard_batch(*wishes)
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert statuses(batch_stack, *wishes) == ["READY"] * 2
    assert len(jobs(batch_stack, *wishes)) == 2
    types = [
        request["ResourceConfig"]["InstanceType"] for request in batch_stack.world.training.requests
    ]
    assert types == ["ml.g5.xlarge", "ml.g5.2xlarge"]


def test_who_has_a_model_is_not_trained(batch_stack: MotoStack) -> None:
    first = put(batch_stack)
    assert batch_stack.onboard_batch(first)["status"] == "SUCCEEDED"
    again, other = put(batch_stack, user_id=first.user_id), put(batch_stack)
    execution = batch_stack.onboard_batch(again, other)
    assert execution["status"] == "SUCCEEDED", execution.get("cause")
    assert statuses(batch_stack, again, other) == ["READY", "READY"]
    assert batch_stack.request(again)["already_ready"] is True
    assert "AlreadyReady" in batch_stack.states(execution)
