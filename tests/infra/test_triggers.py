"""Events: who wakes whom, and what becomes of an event that nobody could handle."""

import json
from typing import Any

import pytest

from infra.publish import Synthesis
from limner.contracts.onboarding import REQUESTED_EVENT


def resources(made: Synthesis, kind: str) -> dict[str, dict[str, Any]]:
    return {
        name: item.get("Properties", {})
        for name, item in made.template["Resources"].items()
        if item["Type"] == kind
    }


def handler(made: Synthesis, reference: Any) -> str:
    """The function or machine that a target names."""
    name = reference.get("Ref") or reference["Fn::GetAtt"][0]
    item = made.template["Resources"][name]
    if item["Type"] == "AWS::Lambda::Function":
        return str(item["Properties"]["Handler"].split(".")[1])
    return str(item["Properties"]["StateMachineName"].partition("-")[2].partition("-")[2])


def rules(made: Synthesis) -> dict[str, dict[str, Any]]:
    """Each rule by what sets it off and what it calls."""
    found = {}
    for rule in resources(made, "AWS::Events::Rule").values():
        pattern = rule.get("EventPattern", {}).get("detail", {})
        machines = [handler(made, item) for item in pattern.get("stateMachineArn", [])]
        cause = rule.get("ScheduleExpression") or (
            f"{'+'.join(machines)} {len(pattern['status'])}" if machines else "requested"
        )
        (target,) = rule["Targets"]
        found[f"{cause} -> {handler(made, target['Arn'])}"] = rule
    return found


def test_who_wakes_whom(stage: Synthesis) -> None:
    assert set(rules(stage)) == {
        "requested -> onboard",
        "onboard+onboard-batch+worker 4 -> dispatch",
        "onboard 3 -> record_failure",
        "onboard+onboard-batch+worker 3 -> reconcile",
        "rate(1 minute) -> dispatch",
        "rate(5 minutes) -> reconcile",
    }


def test_an_apps_event_becomes_an_execution(stage: Synthesis) -> None:
    rule = rules(stage)["requested -> onboard"]
    fields = ("request_id", "user_id", "model_id", "attempt", "retrain")
    assert rule["EventPattern"] == {
        "source": ["limner"],
        "detail-type": [REQUESTED_EVENT],
        "detail": {name: [{"exists": True}] for name in fields},
    }
    (bus,) = resources(stage, "AWS::Events::EventBus")
    assert rule["EventBusName"] == {"Ref": bus}
    (target,) = rule["Targets"]
    assert target["InputPath"] == "$.detail"


def test_every_delivery_is_repeated_within_bounds_and_buried_in_one_queue(
    stage: Synthesis,
) -> None:
    (queue,) = resources(stage, "AWS::SQS::Queue")
    buried = {"Arn": {"Fn::GetAtt": [queue, "Arn"]}}
    for rule in resources(stage, "AWS::Events::Rule").values():
        (target,) = rule["Targets"]
        assert target["DeadLetterConfig"] == buried
        assert target["RetryPolicy"] == {
            "MaximumEventAgeInSeconds": 7200,
            "MaximumRetryAttempts": 20,
        }


def test_functions_that_events_call_bury_what_they_cannot_handle(stage: Synthesis) -> None:
    (queue,) = resources(stage, "AWS::SQS::Queue")
    by_event = {"dispatch", "reconcile", "record_failure"}
    for function in resources(stage, "AWS::Lambda::Function").values():
        name = function["Handler"].split(".")[1]
        grave = function.get("DeadLetterConfig")
        expected = {"TargetArn": {"Fn::GetAtt": [queue, "Arn"]}} if name in by_event else None
        assert grave == expected, name
    configs = resources(stage, "AWS::Lambda::EventInvokeConfig").values()
    assert {handler(stage, config["FunctionName"]) for config in configs} == by_event
    for config in configs:
        assert config["MaximumRetryAttempts"] == 2
        assert config["MaximumEventAgeInSeconds"] == 7200


def test_the_stream_cannot_be_poisoned(stage: Synthesis) -> None:
    (stream,) = resources(stage, "AWS::Lambda::EventSourceMapping").values()
    (queue,) = resources(stage, "AWS::SQS::Queue")
    assert handler(stage, {"Fn::GetAtt": [stream["FunctionName"]["Fn::GetAtt"][0], "Arn"]}) == (
        "dispatch"
    )
    assert stream["BisectBatchOnFunctionError"] is True
    assert stream["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    # Both are without end by default.
    assert 0 < stream["MaximumRetryAttempts"] <= 10
    assert 0 < stream["MaximumRecordAgeInSeconds"] < 24 * 3600
    assert stream["ParallelizationFactor"] == 1
    assert stream["DestinationConfig"]["OnFailure"] == {
        "Destination": {"Fn::GetAtt": [queue, "Arn"]}
    }


def test_only_rows_in_the_queue_wake_dispatch(stage: Synthesis) -> None:
    (stream,) = resources(stage, "AWS::Lambda::EventSourceMapping").values()
    (only,) = stream["FilterCriteria"]["Filters"]
    pattern = json.loads(only["Pattern"])
    assert pattern["eventName"] == ["INSERT", "MODIFY"]
    assert pattern["dynamodb"]["NewImage"]["queue"] == {"S": [{"exists": True}]}


@pytest.mark.parametrize("service", ["AWS::SQS::Queue", "AWS::SNS::Topic"])
def test_messages_travel_by_tls_alone(stage: Synthesis, service: str) -> None:
    policies = [
        *resources(stage, "AWS::SQS::QueuePolicy").values(),
        *resources(stage, "AWS::SNS::TopicPolicy").values(),
    ]
    closed = {
        json.dumps(statement["Resource"])
        for policy in policies
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
    }
    for name in resources(stage, service):
        assert any(f'"{name}"' in text for text in closed), name
