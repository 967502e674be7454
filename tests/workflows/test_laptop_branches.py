"""Map and Parallel on the laptop: data, intrinsics, errors, history, and what ends them."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.support.laptop import TestLaptop, until
from tests.workflows.test_laptop_jobs import bucket, job_request  # noqa: F401  # a fixture

BREAK = {"Type": "Fail", "Error": "Limner.Broken", "Cause": "photo"}


def machine(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"StartAt": "First", "States": {"First": state, **more}}


def mapped(states: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A Map over ``$.items`` whose iterations begin at ``Begin``."""
    processor = {"ProcessorConfig": {"Mode": "INLINE"}, "StartAt": "Begin", "States": states}
    return {
        "Type": "Map",
        "ItemsPath": "$.items",
        "ItemProcessor": processor,
        "End": True,
        **more,
    }


def output(execution: dict[str, Any]) -> Any:
    assert execution["status"] == "SUCCEEDED", execution
    return json.loads(execution["output"])


def history(laptop: TestLaptop, execution: str) -> list[dict[str, Any]]:
    pages = laptop.states.get_paginator("get_execution_history").paginate(executionArn=execution)
    return [event for page in pages for event in page["events"]]


def test_selector_context_and_result_path(laptop: TestLaptop) -> None:
    selector = {
        "item.$": "$$.Map.Item.Value",
        "index.$": "$$.Map.Item.Index",
        "deep": {"common.$": "$.common", "execution.$": "$$.Execution.Name"},
    }
    inner = {
        "Type": "Pass",
        "Parameters": {"all.$": "$", "id.$": "$$.Execution.Id", "value.$": "$$.Map.Item.Value.n"},
        "End": True,
    }
    state = mapped(
        {"Begin": inner}, ItemSelector=selector, MaxConcurrency=2, ResultPath="$.results"
    )
    name = f"map-{uuid.uuid4().hex[:8]}"
    data = {"items": [{"n": 1}, {"n": 2}, {"n": 3}], "common": "c"}
    ended = laptop.run(machine(state), data, name=name)
    result = output(ended)
    assert result["common"] == "c"
    assert [item["value"] for item in result["results"]] == [1, 2, 3]
    assert result["results"][2] == {
        "all": {"item": {"n": 3}, "index": 2, "deep": {"common": "c", "execution": name}},
        "id": ended["executionArn"],
        "value": 3,
    }


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("States.StringSplit($.types, ',')", ["ml.g5.xlarge", "ml.g6.xlarge"]),
        ("States.ArrayGetItem(States.StringSplit($.types, ','), $.n)", "ml.g6.xlarge"),
        ("States.ArrayLength(States.StringSplit($.types, ','))", 2),
        ("States.ArrayPartition($.list, 2)", [[1, 2], [3]]),
        ("States.MathAdd($.n, 1)", 2),
        ("States.Format('{}-{}', $.types, States.MathAdd($.n, 1))", "ml.g5.xlarge,ml.g6.xlarge-2"),
        ("States.ArrayGetItem($.list, 3)", None),
        ("States.ArrayGetItem($.list, States.MathAdd($.n, -2))", None),
    ],
)
def test_intrinsics(laptop: TestLaptop, expression: str, value: object) -> None:
    state = {"Type": "Pass", "Parameters": {"v.$": expression}, "End": True}
    data = {"types": "ml.g5.xlarge,ml.g6.xlarge", "n": 1, "list": [1, 2, 3]}
    ended = laptop.run(machine(state), data)
    if value is None:
        assert ended["error"] == "States.IntrinsicFailure"
    else:
        assert output(ended) == {"v": value}


def test_items_that_are_no_list_end_the_execution(laptop: TestLaptop) -> None:
    state = mapped({"Begin": {"Type": "Pass", "End": True}})
    ended = laptop.run(machine(state), {"items": {"n": 1}})
    assert ended["error"] == "States.Runtime"
    assert "must point to an array" in ended["cause"]


def test_no_items_at_all(laptop: TestLaptop) -> None:
    assert output(laptop.run(machine(mapped({"Begin": BREAK})), {"items": []})) == []


def test_each_iteration_catches_for_itself(laptop: TestLaptop) -> None:
    """A Parallel of one branch is how a chain of states gets one Catch."""
    broken = {"Variable": "$.broken", "BooleanEquals": True, "Next": "Break"}
    chain = {
        "StartAt": "Choose",
        "States": {
            "Choose": {"Type": "Choice", "Choices": [broken], "Default": "Fine"},
            "Break": BREAK,
            "Fine": {"Type": "Succeed"},
        },
    }
    caught = {"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Caught"}
    states = {
        "Begin": {
            "Type": "Parallel",
            "Branches": [chain],
            "Catch": [caught],
            "ResultPath": None,
            "End": True,
        },
        "Caught": {"Type": "Pass", "End": True},
    }
    items = [{"broken": False}, {"broken": True}]
    fine, failed = output(laptop.run(machine(mapped(states)), {"items": items}))
    assert fine == {"broken": False}
    assert failed["error"] == {"Error": "Limner.Broken", "Cause": "photo"}


def test_the_history_shows_each_iteration(laptop: TestLaptop) -> None:
    states = {
        "Begin": {"Type": "Pass", "Next": "Last"},
        "Last": {"Type": "Succeed"},
    }
    ended = laptop.run(machine(mapped(states, MaxConcurrency=1)), {"items": [1, 2]})
    events = history(laptop, ended["executionArn"])
    inside = [
        "MapIterationStarted",
        "PassStateEntered",
        "PassStateExited",
        "SucceedStateEntered",
        "SucceedStateExited",
        "MapIterationSucceeded",
    ]
    assert [event["type"] for event in events] == [
        "ExecutionStarted",
        "MapStateEntered",
        "MapStateStarted",
        *inside,
        *inside,
        "MapStateSucceeded",
        "MapStateExited",
        "ExecutionSucceeded",
    ]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert events[2]["mapStateStartedEventDetails"] == {"length": 2}
    second = events[9]
    assert second["mapIterationStartedEventDetails"] == {"name": "First", "index": 1}
    entered = events[10]
    assert entered["previousEventId"] == second["id"]
    assert entered["stateEnteredEventDetails"]["input"] == "2"


def test_iterations_write_one_history_between_them(laptop: TestLaptop) -> None:
    states = {"Begin": {"Type": "Pass", "End": True}}
    ended = laptop.run(machine(mapped(states)), {"items": list(range(40))})
    events = history(laptop, ended["executionArn"])
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert sum(event["type"] == "MapIterationSucceeded" for event in events) == 40


@pytest.mark.usefixtures("bucket")
def test_an_iteration_that_fails_ends_the_others_and_their_jobs(laptop: TestLaptop) -> None:
    name = job_request()["TrainingJobName"]
    train = {
        "Type": "Task",
        "Resource": "arn:aws:states:::sagemaker:createTrainingJob.sync",
        "Parameters": job_request(TrainingJobName=name, HyperParameters={"behave": "hang"}),
        "End": True,
    }
    wants_job = {"Variable": "$", "StringEquals": "train", "Next": "Train"}
    states = {
        "Begin": {"Type": "Choice", "Choices": [wants_job], "Default": "Look"},
        "Train": train,
        "Look": {
            "Type": "Task",
            "Resource": "arn:aws:states:::aws-sdk:sagemaker:describeTrainingJob",
            "Parameters": {"TrainingJobName": name},
            "Retry": [{"ErrorEquals": ["States.ALL"], "IntervalSeconds": 10, "MaxAttempts": 99}],
            "Next": "Break",
        },
        "Break": BREAK,
    }
    ended = laptop.run(machine(mapped(states)), {"items": ["train", "fail"]})
    assert (ended["status"], ended["error"]) == ("FAILED", "Limner.Broken")
    job = until(
        lambda: laptop.sagemaker.describe_training_job(TrainingJobName=name),
        lambda it: it["TrainingJobStatus"] == "Stopped",
    )
    assert job["SecondaryStatus"] == "Stopped"
    kinds = [event["type"] for event in history(laptop, ended["executionArn"])]
    assert kinds.count("MapIterationFailed") == 1
    assert kinds.count("MapIterationAborted") == 1


@pytest.mark.usefixtures("bucket")
def test_stopping_the_execution_stops_the_jobs_of_its_iterations(laptop: TestLaptop) -> None:
    request = job_request(HyperParameters={"behave": "hang"})
    name = request["TrainingJobName"]
    train = {
        "Type": "Task",
        "Resource": "arn:aws:states:::sagemaker:createTrainingJob.sync",
        "Parameters": request,
        "End": True,
    }
    execution = laptop.begin(machine(mapped({"Begin": train})), {"items": [1]})

    def status() -> str:
        listed = laptop.sagemaker.list_training_jobs(NameContains=name)["TrainingJobSummaries"]
        return str(listed[0]["TrainingJobStatus"]) if listed else ""

    until(status, lambda it: it == "InProgress")
    laptop.states.stop_execution(executionArn=execution)
    assert until(status, lambda it: it == "Stopped")
    assert laptop.finish(execution)["status"] == "ABORTED"


def test_a_parallel_says_that_it_began_and_how_it_ended(laptop: TestLaptop) -> None:
    branch = {"StartAt": "Begin", "States": {"Begin": {"Type": "Pass", "End": True}}}
    ended = laptop.run(machine({"Type": "Parallel", "Branches": [branch], "End": True}))
    kinds = [event["type"] for event in history(laptop, ended["executionArn"])]
    assert kinds[1:-1] == [
        "ParallelStateEntered",
        "ParallelStateStarted",
        "PassStateEntered",
        "PassStateExited",
        "ParallelStateSucceeded",
        "ParallelStateExited",
    ]


# SageMaker by aws-sdk


def sdk(action: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    resource = f"arn:aws:states:::aws-sdk:sagemaker:{action}"
    return {"Type": "Task", "Resource": resource, "Parameters": parameters, "End": True, **more}


@pytest.mark.usefixtures("bucket")
def test_jobs_by_aws_sdk(laptop: TestLaptop) -> None:
    request = job_request(HyperParameters={"behave": "hang"})
    name = {"TrainingJobName": request["TrainingJobName"]}
    chain = {
        "First": sdk("createTrainingJob", request, ResultPath="$.created"),
        "Look": sdk("describeTrainingJob", name, ResultPath="$.job"),
        "Stop": sdk("stopTrainingJob", name, ResultPath=None),
    }
    for state, following in (("First", "Look"), ("Look", "Stop")):
        chain[state].pop("End")
        chain[state]["Next"] = following
    result = output(laptop.run({"StartAt": "First", "States": chain}))
    assert result["created"]["TrainingJobArn"].endswith(request["TrainingJobName"])
    assert result["job"]["TrainingJobStatus"] == "InProgress"
    again = laptop.run(machine(sdk("createTrainingJob", request)))
    assert again["error"] == "SageMaker.ResourceInUseException"
    laptop.control.trouble(throttle_next=1)
    throttled = laptop.run(machine(sdk("createTrainingJob", job_request())))
    assert throttled["error"] == "SageMaker.SageMakerException"
    laptop.control.trouble(quota_full=True)
    full = laptop.run(machine(sdk("createTrainingJob", job_request())))
    assert full["error"] == "SageMaker.ResourceLimitExceededException"
