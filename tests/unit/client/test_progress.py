"""What an execution's history and its job say of the progress."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.stub import Stubber

from limner.client import StateVisit
from limner.client.progress import visits_of
from tests.unit.client.world import World, photos

START = datetime(2026, 1, 1, tzinfo=UTC)


def history(*steps: tuple[str, str] | tuple[str, str, str]) -> Iterator[dict[str, Any]]:
    """Events, one second apart; a step is (type, state) or (type, "", error)."""
    for number, (kind, name, *error) in enumerate(steps):
        event: dict[str, Any] = {"type": kind, "timestamp": START + timedelta(seconds=number)}
        if kind.endswith("StateEntered"):
            event["stateEnteredEventDetails"] = {"name": name}
        elif kind.endswith("StateExited"):
            event["stateExitedEventDetails"] = {"name": name}
        elif error:
            event[f"{kind[0].lower()}{kind[1:]}EventDetails"] = {"error": error[0]}
        yield event


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def test_states_with_retries_and_a_caught_error() -> None:
    throttled = "SageMaker.AmazonSageMakerException"
    found = visits_of(
        history(
            ("ExecutionStarted", ""),
            ("TaskStateEntered", "Claim"),
            ("TaskScheduled", ""),
            ("TaskSucceeded", ""),
            ("TaskStateExited", "Claim"),
            ("TaskStateEntered", "FineTune"),
            ("TaskFailed", "", throttled),
            ("TaskSubmitFailed", "", throttled),
            ("TaskSucceeded", ""),
            ("TaskStateExited", "FineTune"),
            ("TaskStateEntered", "SmokeTest"),
            ("LambdaFunctionTimedOut", "", "States.Timeout"),
            ("TaskStateExited", "SmokeTest"),
            ("FailStateEntered", "Failed"),
            ("ExecutionFailed", ""),
        )
    )
    assert found == (
        StateVisit("Claim", at(1), at(4)),
        StateVisit("FineTune", at(5), at(9), failures=2),
        StateVisit("SmokeTest", at(10), at(12), failures=1, error="States.Timeout"),
        StateVisit("Failed", at(13), at(14)),
    )


def test_a_state_that_goes_on_is_open_and_counts_up() -> None:
    (visit,) = visits_of(history(("TaskStateEntered", "FineTune"), ("TaskFailed", "", "Busy")))
    assert visit == StateVisit("FineTune", at(0), None, failures=1, error="Busy")
    assert visit.seconds(at(9)) == 9


def test_a_stop_ends_the_state_that_the_execution_is_in() -> None:
    found = visits_of(history(("WaitStateEntered", "Wait"), ("ExecutionAborted", "")))
    assert found == (StateVisit("Wait", at(0), at(1)),)


def test_a_state_that_is_entered_twice_is_two_visits() -> None:
    twice = [("PassStateEntered", "A"), ("PassStateExited", "A")] * 2
    assert [visit.left_at for visit in visits_of(history(*twice))] == [at(1), at(3)]


def test_progress_before_the_start_has_no_states(aws: World) -> None:
    aws.put_request(request_id="r1", user_id="alice", status="QUEUED")
    at_present = aws.limner.progress("r1")
    assert (at_present.states, at_present.job) == ((), None)


def test_progress_reads_the_states_of_the_execution(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    (visit,) = aws.limner.progress(request.request_id).states
    assert visit.name == "A State"  # moto's canned history of a machine that it does not execute
    assert visit.left_at is not None


def job(name: str, **values: Any) -> dict[str, Any]:
    """An answer of DescribeTrainingJob, as far as it must be whole."""
    return {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}",
        "ModelArtifacts": {"S3ModelArtifacts": "s3://b/k"},
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "ResourceConfig": {"VolumeSizeInGB": 1},
        "StoppingCondition": {},
        "CreationTime": START,
        **values,
    }


def metric(name: str, value: float) -> dict[str, Any]:
    return {"MetricName": name, "Value": value, "Timestamp": START}


def test_progress_reads_step_and_loss_of_the_job(aws: World) -> None:
    aws.put_request(
        request_id="r1",
        user_id="alice",
        status="TRAINING",
        owner=OWNER,
        job_name="limner-r1-2",
        steps=300,
    )
    answer = job(
        "limner-r1-2",
        FinalMetricDataList=[metric("train:step", 120.0), metric("train:loss", 0.25)],
    )
    with Stubber(aws.clients.sagemaker) as stub:
        stub.add_response("describe_training_job", answer, {"TrainingJobName": "limner-r1-2"})
        found = aws.limner.progress("r1").job
    assert found is not None
    assert (found.secondary_status, found.step, found.steps, found.loss) == (
        "Training",
        120,
        300,
        0.25,
    )


OWNER = "arn:aws:states:us-east-1:123456789012:execution:onboard:r1-1"


@pytest.mark.parametrize("code", ["ValidationException", "AccessDeniedException"])
def test_progress_goes_without_a_job_that_cannot_be_seen(aws: World, code: str) -> None:
    aws.put_request(request_id="r1", user_id="alice", status="TRAINING", owner=OWNER, job_name="j")
    with Stubber(aws.clients.sagemaker) as stub:
        stub.add_client_error("describe_training_job", code)
        assert aws.limner.progress("r1").job is None


def test_follow_yields_changes_only_and_ends_with_the_request(aws: World) -> None:
    request = aws.limner.onboard("alice", photos())
    aws.clock.after(3, lambda: aws.move(request, status="READY", already_ready=True))
    seen = [progress.request.status for progress in aws.limner.follow(request.request_id, poll_s=1)]
    assert seen == ["QUEUED", "READY"]
    assert aws.clock.sleeps == [1, 1, 1]
