"""Lint of the published machines: what must hold for every state."""

import json
import re
from typing import Any

import pytest
from statelint.config import Config
from statelint.linter import Linter

from limner.contracts.errors import NOT_RECORDED, REGISTRY
from limner.contracts.onboarding import BatchInput, OnboardingInput, OnboardingReady
from limner.contracts.statuses import ALLOWED_FROM, RequestStatus
from tests.unit.workflows.machines import (
    MACHINES,
    NAMES,
    POLICIES,
    all_states,
    next_status,
    scopes,
    tasks,
    ways_from,
    writes,
)
from workflows import asl, retries

STATES = all_states(MACHINES["onboard"])
BATCH_STATES = all_states(MACHINES["onboard_batch"])
every_machine = pytest.mark.parametrize("name", NAMES)
# A worker's machine owns no request, and writes nothing.
every_owner = pytest.mark.parametrize("name", ("onboard", "onboard_batch"))
every_task = pytest.mark.parametrize(
    ("machine", "name"), [(m, name) for m in NAMES for name in tasks(MACHINES[m])]
)

# States of both machines that differ in what they call, or in where they lead, and how.
RENAMED = {
    "RecordClaimFailure": "RecordFailure",
    "NotifyClaimFailure": "NotifyFailure",
    "RecordClaimAnnouncement": "RecordAnnouncement",
    "ClaimFailed": "Failed",
    "ClaimFailureLeft": "FailureNotRecorded",
}


def happy_path(machine: dict[str, Any], start: str, choices: dict[str, str]) -> list[str]:
    """The way of a request that meets no trouble; ``choices`` tells which way at a fork."""
    name, path = start, []
    while name:
        path.append(name)
        state = machine["States"][name]
        name = choices.get(name) or state.get("Next") or state.get("Default")
    return path


@every_machine
def test_statelint_has_nothing_to_say(name: str) -> None:
    problems = Linter.validate(str(asl.path(name)), Config([], False, False))
    assert list(problems) == []


@every_machine
def test_the_table_and_the_machine_speak_of_the_same_tasks(name: str) -> None:
    assert set(tasks(MACHINES[name])) == set(POLICIES[name])


@every_machine
def test_no_two_states_share_a_name(name: str) -> None:
    names = [state for scope in scopes(MACHINES[name]) for state in scope["States"]]
    assert len(names) == len(set(names))


@every_task
def test_timeout_retry_and_catch_come_from_the_table(machine: str, name: str) -> None:
    state, policy = tasks(MACHINES[machine])[name], POLICIES[machine][name]
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


@every_task
def test_every_task_catches_everything_at_last(machine: str, name: str) -> None:
    assert tasks(MACHINES[machine])[name]["Catch"][-1]["ErrorEquals"] == ["States.ALL"]


def test_the_happy_path_is_the_one_in_the_picture() -> None:
    path = happy_path(
        MACHINES["onboard"], "CheckModelStatus", {"IsReservationOurs": "PlanTraining"}
    )
    assert path == [
        *("CheckModelStatus", "IsModelReady", "ClaimRequest", "ReserveVersion"),
        *("ReadReservation", "IsReservationOurs", "PlanTraining", "RecordAttempt", "FineTune"),
        *("RecordModel", "InspectArtifact", "PublishArtifact", "SmokeTest"),
        *("ActivateModel", "NotifyReady"),
        *("RecordReadyAnnouncement", "Onboarded"),
    ]


def test_the_happy_path_of_a_batch_is_the_one_in_the_picture() -> None:
    choices = {
        "IsAnythingToTrain": "RecordBatchAttempt",
        "IsReservationOurs": "PlanTraining",
        "WhatCameOfIt": "RecordModel",
    }
    batch = MACHINES["onboard_batch"]
    assert happy_path(batch, batch["StartAt"], choices) == [
        *("ClaimAll", "PlanBatch", "PackTasks", "TakePlan", "IsAnythingToTrain"),
        *("RecordBatchAttempt", "FineTuneBatch", "JobDone", "CollectResults", "TakeResults"),
        *("FinishAll", "IsAllSettled", "BatchDone"),
    ]
    claim = batch["States"]["ClaimAll"]["ItemProcessor"]
    assert happy_path(claim, claim["StartAt"], choices) == [
        *("CheckModelStatus", "IsModelReady", "ClaimRequest", "ReserveVersion"),
        *("ReadReservation", "IsReservationOurs", "PlanTraining"),
    ]
    finish = batch["States"]["FinishAll"]["ItemProcessor"]
    assert happy_path(finish, finish["StartAt"], choices) == [
        *("WhatCameOfIt", "RecordModel", "InspectArtifact", "PublishArtifact", "SmokeTest"),
        "ActivateModel",
        *("NotifyReady", "RecordReadyAnnouncement", "Onboarded"),
    ]


def test_a_request_of_a_batch_passes_the_same_states_as_a_single_one() -> None:
    """All but the ends, the plan and the source of the artifact: those are told apart."""
    own = {"PlanTraining", "AlreadyReady", "RequestNotClaimed", "Onboarded", "Failed"}
    own |= {"FailureNotRecorded", "ReadyUnannounced"}

    def comparable(state: dict[str, Any], *, batch: bool) -> dict[str, Any]:
        text = json.dumps(state)
        for batch_name, name in RENAMED.items() if batch else ():
            text = text.replace(f'"{batch_name}"', f'"{name}"')
        same: dict[str, Any] = json.loads(text)
        if "CopySource.$" in same.get("Parameters", {}):
            del same["Parameters"]["CopySource.$"]
        same.get("Parameters", {}).get("Payload", {}).pop("artifact.$", None)
        # Only in a batch a request of somebody else ends without leaving anything to a rule.
        same["Catch"] = [c for c in same.get("Catch", ()) if not c["Next"].endswith("NotOurs")]
        return same

    shared = 0
    for scope in (BATCH_STATES["ClaimAll"], BATCH_STATES["FinishAll"]):
        for name, state in scope["ItemProcessor"]["States"].items():
            single = STATES.get(RENAMED.get(name, name))
            if single is None or RENAMED.get(name, name) in own:
                continue
            shared += 1
            assert comparable(state, batch=True) == comparable(single, batch=False), name
    assert shared == 21


def test_the_troubles_of_a_batch_are_those_of_a_single_job() -> None:
    same = ("IsJobDone", "MayLookAgain", "CountLook", "WaitForJob", "StopJob", "CountWait")
    for name in (*same, "ReadJobFailure", "AdoptedJobFailed", "NextAttempt", "WaitForCapacity"):
        single, batch = STATES[name], BATCH_STATES[name]
        assert single["Type"] == batch["Type"]
        if name != "NextAttempt":  # its job has another name
            assert single.get("Parameters") == batch.get("Parameters"), name
    job, batch_job = (
        states[name]["Parameters"]
        for states, name in ((STATES, "FineTune"), (BATCH_STATES, "FineTuneBatch"))
    )
    assert set(job) == set(batch_job)
    for field in ("AlgorithmSpecification", "RetryStrategy", "RoleArn", "TrainingJobName.$"):
        assert job[field] == batch_job[field]


@every_machine
def test_every_state_can_be_reached_and_explains_itself(name: str) -> None:
    for scope in scopes(MACHINES[name]):
        reached, pending = set(), [scope["StartAt"]]
        while pending:
            state = pending.pop()
            if state not in reached:
                reached.add(state)
                pending += ways_from(scope["States"][state])
        assert reached == set(scope["States"])
    states = all_states(MACHINES[name])
    assert [name for name, state in states.items() if len(state.get("Comment", "")) < 13] == []


def test_a_failure_between_claim_and_activation_is_recorded() -> None:
    path = happy_path(
        MACHINES["onboard"], "CheckModelStatus", {"IsReservationOurs": "PlanTraining"}
    )
    happy = [name for name in path if STATES[name]["Type"] == "Task"]
    for name in happy[: happy.index("NotifyReady")]:
        assert STATES[name]["Catch"][-1]["Next"] in {"RecordFailure", "DidJobFail"}
    end = ("NotifyFailure", "RecordAnnouncement", "Failed")
    assert happy_path(MACHINES["onboard"], "RecordFailure", {}) == ["RecordFailure", *end]


def test_an_item_of_a_map_never_ends_the_others() -> None:
    for map_state in (BATCH_STATES["ClaimAll"], BATCH_STATES["FinishAll"]):
        states = map_state["ItemProcessor"]["States"]
        assert {s["Type"] for s in states.values() if s.get("End")} == {"Pass"}
        assert "Fail" not in {s["Type"] for s in states.values()}


def test_all_items_that_leave_the_claim_have_the_same_fields() -> None:
    states = BATCH_STATES["ClaimAll"]["ItemProcessor"]["States"]
    fields = {
        name: {field.removesuffix(".$") for field in state["Parameters"]}
        for name, state in states.items()
        if state.get("End")
    }
    assert len(fields) == 6
    assert len({frozenset(each) for each in fields.values()}) == 1
    wanted = re.findall(r"Item\.Value\.(\w+)", json.dumps(BATCH_STATES["FinishAll"]))
    assert set(wanted) <= fields["PlanTraining"]


def test_an_item_ends_with_few_words() -> None:
    """All results of a Map share 256 KiB with all other state."""
    states = BATCH_STATES["FinishAll"]["ItemProcessor"]["States"]
    ends = {name: state["Result"] for name, state in states.items() if state.get("End")}
    assert len(ends) == 8
    assert all(isinstance(result, str) and len(result) < 12 for result in ends.values())


def test_a_failure_that_cannot_be_recorded_leaves_its_own_reason_to_the_rule() -> None:
    (catcher,) = STATES["RecordFailure"]["Catch"]
    assert catcher["ResultPath"] != retries.FAILURE_PATH
    end = STATES[catcher["Next"]]
    assert (end["Type"], end["Error"]) == ("Fail", NOT_RECORDED)
    assert end["CausePath"] == f"States.JsonToString({retries.FAILURE_PATH})"


@every_owner
def test_a_request_of_somebody_else_stays_untouched(name: str) -> None:
    states = all_states(MACHINES[name])
    for task in ("ClaimRequest", "RecordAlreadyReady"):
        assert states[task]["Catch"][0] == {
            "ErrorEquals": [retries.CONDITION_FAILED],
            "ResultPath": retries.FAILURE_PATH,
            "Next": "RequestNotClaimed",
        }


def test_fixed_errors_are_in_the_registry() -> None:
    for states, count in ((STATES, 5), (BATCH_STATES, 5)):
        text = json.dumps(list(states.values()))
        fixed = set(re.findall(r'"Error": "([A-Z_]+)"', text))
        assert len(fixed) == count, fixed
        assert fixed <= set(REGISTRY)


@every_owner
def test_every_write_has_a_condition(name: str) -> None:
    found = list(writes(MACHINES[name]))
    assert [state for state, write in found if not write.get("ConditionExpression")] == []
    assert len(found) == {"onboard": 12, "onboard_batch": 13}[name]


@every_owner
def test_a_claim_is_of_the_row_s_own_user_and_model(name: str) -> None:
    states = all_states(MACHINES[name])
    for task in ("ClaimRequest", "RecordAlreadyReady"):
        condition = states[task]["Parameters"]["ConditionExpression"]
        assert condition.startswith("#user_id = :user AND #model_id = :model AND ("), task
        values = states[task]["Parameters"]["ExpressionAttributeValues"]
        assert (values[":user"], values[":model"]) == ({"S.$": "$.user_id"}, {"S.$": "$.model_id"})


@every_machine
def test_only_a_job_of_our_own_is_adopted(name: str) -> None:
    states = all_states(MACHINES[name])
    first = states["IsJobDone"]["Choices"][0]
    assert (next(iter(first)), first["Next"]) == ("Not", "JobNotOurs")
    mark, whose = {
        "onboard": ("LIMNER_REQUEST_ID", "$.request_id"),
        "onboard_batch": ("LIMNER_BATCH_ID", "$.batch_id"),
        "worker": ("LIMNER_BATCH_ID", "$.batch_id"),
    }[name]
    assert first["Not"]["And"][1] == {
        "Variable": f"$.report.job.Environment.{mark}",
        "StringEqualsPath": whose,
    }
    job = next(s for s in states.values() if "TrainingJobName.$" in s.get("Parameters", {}))
    assert job["Parameters"]["Environment"][f"{mark}.$"] == whose


@every_machine
def test_every_transaction_of_an_item_has_a_token_of_its_own(name: str) -> None:
    """Two items may enter a state in the same millisecond."""
    for state in tasks(MACHINES[name]).values():
        if "transactWriteItems" in state["Resource"]:
            assert "$.request_id" in state["Parameters"]["ClientRequestToken.$"]


@every_owner
def test_a_request_moves_only_where_it_may(name: str) -> None:
    moves = 0
    for state, write in writes(MACHINES[name]):
        if write["TableName"] != "${RequestsTableName}" or not (new := next_status(write)):
            continue
        values = {key: value.get("S") for key, value in write["ExpressionAttributeValues"].items()}
        target = RequestStatus(values[new])
        old = {
            RequestStatus(values[value])
            for listed in re.findall(
                r"#status (?:IN \(([^)]*)\)|= (:\w+))", write["ConditionExpression"]
            )
            for value in re.findall(r":\w+", " ".join(listed))
        }
        assert old, f"{state} does not say where it comes from"
        assert old - {target} <= ALLOWED_FROM[target], state
        assert ":me" in write["ConditionExpression"], f"{state} does not ask for the owner"
        moves += 1
    # The two status writes of a batch's job are record_progress's.
    assert moves == {"onboard": 6, "onboard_batch": 5}[name]


@every_machine
def test_the_indexes_are_left_when_it_is_time(name: str) -> None:
    for state, write in writes(MACHINES[name]):
        if write["TableName"] != "${RequestsTableName}":
            continue
        update = write["UpdateExpression"]
        removed = set(re.findall(r"#\w+", update.partition("REMOVE")[2]))
        if state == "RecordAlreadyReady":
            assert {"#open", "#queue"} <= removed, state
        elif state == "ActivateModel":
            assert removed == {"#queue"}, "open until the app was told: reconcile looks there"
            assert "#unannounced = :true" in update
        elif state == "RecordReadyAnnouncement":
            assert removed == {"#unannounced", "#open"}
        elif state == "ClaimRequest":
            assert removed == {"#queue", "#lease_until"}
        elif state == "Requeue":
            assert removed == {"#owner", "#lease_until"}
        else:
            assert not removed & {"#open", "#queue"}, state


@every_owner
def test_the_input_is_used_as_the_contract_names_it(name: str) -> None:
    states = all_states(MACHINES[name])
    text = json.dumps([states["CheckModelStatus"], states["ClaimRequest"]])
    text += json.dumps(states["PlanTraining"]["Parameters"])
    fields = set(re.findall(r"\$\.([a-z_]+)", text))
    own = {"reservation", "failure", "model"}
    assert fields - own <= set(OnboardingInput.model_fields)
    if name == "onboard_batch":
        assert states["ClaimAll"]["ItemsPath"] == "$.requests"
        text = json.dumps(states["PlanBatch"]["Parameters"])
        given = set(re.findall(r"\$\.([a-z_]+)", text)) - {"items"}
        assert given <= set(BatchInput.model_fields)


@every_owner
def test_the_ready_event_has_the_fields_of_the_contract(name: str) -> None:
    message = all_states(MACHINES[name])["NotifyReady"]["Parameters"]["Message"]
    assert {field.removesuffix(".$") for field in message} == set(OnboardingReady.model_fields)


@pytest.mark.parametrize(
    "task", [STATES["FineTune"], BATCH_STATES["FineTuneBatch"]], ids=["single", "batch"]
)
def test_the_job_is_named_by_its_attempt_not_by_its_retry(task: dict[str, Any]) -> None:
    job = task["Parameters"]
    assert job["TrainingJobName.$"] == "$.job.name"
    assert "RetryCount" not in json.dumps(job)
    assert "HyperParameters" not in json.dumps(job)


def test_a_worker_has_a_network_a_role_of_its_own_and_no_checkpoints() -> None:
    job = all_states(MACHINES["worker"])["RunWorker"]["Parameters"]
    assert job["EnableNetworkIsolation"] is False
    assert job["RoleArn"] == "${WorkerRoleArn}"
    assert "CheckpointConfig" not in job
    assert not job.get("EnableManagedSpotTraining")
    assert list(writes(MACHINES["worker"])) == []
    lifetime = int(job["Environment"]["LIMNER_WORKER_LIFETIME_S"])
    assert job["StoppingCondition"]["MaxRuntimeInSeconds"] > lifetime


@every_machine
def test_nothing_of_an_account_is_published(name: str) -> None:
    text = asl.path(name).read_text(encoding="utf-8")
    assert not re.search(r"\b\d{12}\b|Token\[|arn:aws:(?!states:::)", text)
    jobs = {"BaseId", "BucketName", "RequestsTableName", "TrainingImage", "TrainingInstanceTypes"}
    onboard = {
        *("ModelsTableName", "RecordFailureArn", "InspectArtifactArn", "SmokeTestArn"),
        *("TopicArn", "TrainingRoleArn"),
    }
    batch = {"PackTasksArn", "CollectResultsArn", "RecordProgressArn"}
    assert (
        asl.placeholders(name)
        == jobs
        | {
            "onboard": onboard,
            "onboard_batch": onboard | batch,
            "worker": {"WorkerRoleArn", "Region"},
        }[name]
    )
