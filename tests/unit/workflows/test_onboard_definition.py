"""Lint of the published machine ``onboard``: what must hold for every state."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from statelint.config import Config
from statelint.linter import Linter

from limner.contracts.errors import REGISTRY
from limner.contracts.onboarding import OnboardingInput, OnboardingReady
from limner.contracts.statuses import ALLOWED_FROM, RequestStatus
from workflows import asl, retries

MACHINE: dict[str, Any] = json.loads(asl.path("onboard").read_text(encoding="utf-8"))
STATES: dict[str, dict[str, Any]] = MACHINE["States"]
TASKS = {name: state for name, state in STATES.items() if state["Type"] == "Task"}


def ways_from(state: dict[str, Any]) -> list[str]:
    choices = [choice["Next"] for choice in state.get("Choices", ())]
    caught = [catcher["Next"] for catcher in state.get("Catch", ())]
    return [*choices, *caught, *(state[way] for way in ("Next", "Default") if way in state)]


def happy_path() -> list[str]:
    """The way of a request of a new user that meets no trouble."""
    name, path = MACHINE["StartAt"], []
    while name:
        path.append(name)
        state = STATES[name]
        if name == "IsReservationOurs":
            name = state["Choices"][0]["Next"]
        else:
            name = state.get("Next") or state.get("Default")
    return path


def writes() -> Iterator[tuple[str, dict[str, Any]]]:
    """All updates of the machine, alone or in a transaction, with the name of their state."""
    for name, state in TASKS.items():
        if state["Resource"].endswith("dynamodb:updateItem"):
            yield name, state["Parameters"]
        elif state["Resource"].endswith("dynamodb:transactWriteItems"):
            for item in state["Parameters"]["TransactItems"]:
                yield name, item["Update"]


def test_statelint_has_nothing_to_say() -> None:
    problems = Linter.validate(str(asl.path("onboard")), Config([], False, False))
    assert list(problems) == []


def test_the_table_and_the_machine_speak_of_the_same_tasks() -> None:
    assert set(TASKS) == set(retries.ONBOARD)


@pytest.mark.parametrize("name", TASKS)
def test_timeout_retry_and_catch_come_from_the_table(name: str) -> None:
    state, policy = TASKS[name], retries.ONBOARD[name]
    assert state["TimeoutSeconds"] == policy.timeout_s
    assert state["Catch"] == [
        {
            "ErrorEquals": list(catcher.errors),
            "ResultPath": catcher.result_path,
            "Next": catcher.next_state,
        }
        for catcher in policy.catchers
    ]
    assert state["Retry"] == [
        {"ErrorEquals": list(retrier.errors), "MaxAttempts": 0}
        if retrier.attempts == 0
        else {
            "ErrorEquals": list(retrier.errors),
            "IntervalSeconds": retrier.first_delay_s,
            "MaxAttempts": retrier.attempts,
            "BackoffRate": retrier.rate,
            "MaxDelaySeconds": retrier.longest_delay_s,
            "JitterStrategy": "FULL" if retrier.jitter else "NONE",
        }
        for retrier in policy.retriers
    ]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_catches_everything_at_last(name: str) -> None:
    assert TASKS[name]["Catch"][-1]["ErrorEquals"] == ["States.ALL"]


def test_the_happy_path_is_the_one_in_the_picture() -> None:
    assert happy_path() == [
        *("CheckModelStatus", "IsModelReady", "ClaimRequest", "ReserveVersion"),
        *("ReadReservation", "IsReservationOurs", "PlanTraining", "RecordAttempt", "FineTune"),
        *("RecordModel", "PublishArtifact", "SmokeTest", "ActivateModel", "NotifyReady"),
        "Onboarded",
    ]


def test_every_state_can_be_reached_and_explains_itself() -> None:
    reached, pending = set(), [MACHINE["StartAt"]]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += ways_from(STATES[name])
    assert reached == set(STATES)
    assert [name for name, state in STATES.items() if len(state.get("Comment", "")) < 15] == []


def test_a_failure_between_claim_and_activation_is_recorded() -> None:
    happy = [name for name in happy_path() if name in TASKS]
    for name in happy[: happy.index("NotifyReady")]:
        assert TASKS[name]["Catch"][-1]["Next"] in {"RecordFailure", "DidJobFail"}
    assert STATES["RecordFailure"]["Next"] == "NotifyFailure"
    assert STATES["NotifyFailure"]["Next"] == "Failed"


def test_a_failure_that_cannot_be_recorded_leaves_its_own_reason_to_the_rule() -> None:
    (catcher,) = TASKS["RecordFailure"]["Catch"]
    assert catcher["ResultPath"] != retries.FAILURE_PATH
    end = STATES[catcher["Next"]]
    assert (end["Type"], end["ErrorPath"]) == ("Fail", f"{retries.FAILURE_PATH}.Error")
    assert end["CausePath"] == f"{retries.FAILURE_PATH}.Cause"


def test_a_request_of_somebody_else_stays_untouched() -> None:
    for name in ("ClaimRequest", "RecordAlreadyReady"):
        assert TASKS[name]["Catch"][0] == {
            "ErrorEquals": [retries.CONDITION_FAILED],
            "ResultPath": retries.FAILURE_PATH,
            "Next": "RequestNotClaimed",
        }
    assert STATES["RequestNotClaimed"]["Type"] == "Fail"


def test_fixed_errors_are_in_the_registry() -> None:
    fixed = [state["Error"] for state in STATES.values() if "Error" in state]
    fixed.append(STATES["ModelBusy"]["Result"]["Error"])
    assert len(fixed) == 3
    assert set(fixed) <= set(REGISTRY)


def test_every_write_has_a_condition() -> None:
    unconditional = [name for name, write in writes() if not write.get("ConditionExpression")]
    assert unconditional == []
    assert len(list(writes())) == 10


def test_a_request_moves_only_where_it_may() -> None:
    moves = 0
    for name, write in writes():
        if write["TableName"] != "${RequestsTableName}":
            continue
        values = {key: value.get("S") for key, value in write["ExpressionAttributeValues"].items()}
        (new,) = re.findall(r"#status = (:\w+)", write["UpdateExpression"])
        target = RequestStatus(values[new])
        old = {
            RequestStatus(values[value])
            for listed in re.findall(
                r"#status (?:IN \(([^)]*)\)|= (:\w+))", write["ConditionExpression"]
            )
            for value in re.findall(r":\w+", " ".join(listed))
        }
        assert old, f"{name} does not say where it comes from"
        assert old - {target} <= ALLOWED_FROM[target], name
        assert ":me" in write["ConditionExpression"], f"{name} does not ask for the owner"
        moves += 1
    assert moves == 6


def test_the_input_is_used_as_the_contract_names_it() -> None:
    text = json.dumps([STATES[name] for name in ("CheckModelStatus", "ClaimRequest")])
    text += json.dumps(STATES["PlanTraining"]["Parameters"])
    fields = set(re.findall(r"\$\.([a-z_]+)", text))
    own = {"reservation", "failure", "model"}
    assert fields - own <= set(OnboardingInput.model_fields)


def test_the_ready_event_has_the_fields_of_the_contract() -> None:
    message = STATES["NotifyReady"]["Parameters"]["Message"]
    assert {name.removesuffix(".$") for name in message} == set(OnboardingReady.model_fields)


def test_the_job_is_named_by_its_attempt_not_by_its_retry() -> None:
    job = STATES["FineTune"]["Parameters"]
    assert job["TrainingJobName.$"] == "$.job.name"
    assert "RetryCount" not in json.dumps(job)
    assert job["StoppingCondition"]["MaxRuntimeInSeconds"] < STATES["FineTune"]["TimeoutSeconds"]


def test_nothing_of_an_account_is_published() -> None:
    text = asl.path("onboard").read_text(encoding="utf-8")
    assert not re.search(r"\b\d{12}\b|Token\[|arn:aws:(?!states:::)", text)
    assert asl.placeholders("onboard") == {
        *("BaseId", "BucketName", "ModelsTableName", "RecordFailureArn", "RequestsTableName"),
        *("SmokeTestArn", "TopicArn", "TrainingImage", "TrainingInstanceType", "TrainingRoleArn"),
    }
