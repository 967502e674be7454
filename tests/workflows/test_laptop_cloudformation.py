"""Templates for AWS deploy on the laptop: what matters works, what only matters there is kept."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.support.laptop import ROLE, TestLaptop, until

COMPARED = {
    "ComparisonOperator": "GreaterThanThreshold",
    "Threshold": 1,
    "EvaluationPeriods": 1,
}


def deploy(laptop: TestLaptop, resources: dict[str, Any], name: str = "") -> dict[str, str]:
    """Creates or updates a stack; returns its outputs."""
    client = laptop.client("cloudformation")
    outputs = {f"{key}Ref": {"Value": {"Ref": key}} for key in resources}
    body = json.dumps({"Resources": resources, "Outputs": outputs})
    put = client.update_stack if name else client.create_stack
    stack = name or f"s-{uuid.uuid4().hex[:8]}"
    put(StackName=stack, TemplateBody=body, Capabilities=["CAPABILITY_IAM"])
    (found,) = until(
        lambda: client.describe_stacks(StackName=stack)["Stacks"],
        lambda stacks: not stacks[0]["StackStatus"].endswith("IN_PROGRESS"),
    )
    events = client.describe_stack_events(StackName=stack)["StackEvents"]
    assert found["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), events
    return {
        "stack": stack,
        **{item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", [])},
    }


def metrics() -> list[dict[str, Any]]:
    metric = {"Metric": {"Namespace": "N", "MetricName": "M"}, "Period": 60, "Stat": "Sum"}
    return [
        {"Id": "e", "Expression": "a * 2", "ReturnData": True},
        {"Id": "a", "MetricStat": metric, "ReturnData": False},
    ]


def test_what_has_no_effect_here_deploys_updates_and_goes(laptop: TestLaptop) -> None:
    variant = "endpoint/e/variant/AllTraffic"
    target = {
        "MinCapacity": 1,
        "MaxCapacity": 4,
        "ResourceId": variant,
        "RoleARN": ROLE,
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        "ServiceNamespace": "sagemaker",
    }
    budget = {"BudgetType": "COST", "TimeUnit": "MONTHLY"}
    resources = {
        "Target": {"Type": "AWS::ApplicationAutoScaling::ScalableTarget", "Properties": target},
        "Policy": {
            "Type": "AWS::ApplicationAutoScaling::ScalingPolicy",
            "Properties": {"PolicyName": "p", "ScalingTargetId": {"Ref": "Target"}},
        },
        "Maths": {
            "Type": "AWS::CloudWatch::Alarm",
            "Properties": {**COMPARED, "Metrics": metrics()},
        },
        "Both": {
            "Type": "AWS::CloudWatch::CompositeAlarm",
            "Properties": {"AlarmRule": {"Fn::Sub": 'ALARM("${Maths.Arn}")'}},
        },
        "Detector": {"Type": "AWS::CloudWatch::AnomalyDetector", "Properties": {}},
        "Budget": {"Type": "AWS::Budgets::Budget", "Properties": {"Budget": budget}},
        "Query": {"Type": "AWS::Logs::QueryDefinition", "Properties": {"Name": "q"}},
    }
    made = deploy(laptop, resources)
    assert made["TargetRef"] == f"{variant}|{target['ScalableDimension']}|sagemaker"
    assert ":scalingPolicy:" in made["PolicyRef"]

    plain = {**COMPARED, "Namespace": "N", "MetricName": "M", "Statistic": "Sum", "Period": 60}
    resources["Maths"]["Properties"] = plain
    updated = deploy(laptop, resources, made["stack"])
    alarms = laptop.client("cloudwatch").describe_alarms(AlarmNames=[updated["MathsRef"]])
    assert len(alarms["MetricAlarms"]) == 1
    client = laptop.client("cloudformation")
    client.delete_stack(StackName=made["stack"])
    stacks = client.get_paginator("list_stacks").paginate(StackStatusFilter=["DELETE_COMPLETE"])
    until(
        lambda: [it["StackName"] for page in stacks for it in page["StackSummaries"]],
        lambda names: made["stack"] in names,
    )


@pytest.mark.parametrize("reports", [True, False])
def test_a_mapping_keeps_what_protects_it_from_poison(laptop: TestLaptop, *, reports: bool) -> None:
    settings: dict[str, Any] = {
        "BatchSize": 100,
        "BisectBatchOnFunctionError": True,
        "MaximumRetryAttempts": 3,
        "MaximumRecordAgeInSeconds": 3600,
        "FunctionResponseTypes": ["ReportBatchItemFailures"] if reports else [],
    }
    function = {"ZipFile": "def handler(event, context):\n    return {}"}
    resources = {
        "Queue": {"Type": "AWS::SQS::Queue", "Properties": {}},
        "Function": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "Runtime": "python3.11",
                "Handler": "index.handler",
                "Role": ROLE,
                "Code": function,
            },
        },
        "Table": {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
                "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
                "StreamSpecification": {"StreamViewType": "NEW_AND_OLD_IMAGES"},
            },
        },
        "Mapping": {
            "Type": "AWS::Lambda::EventSourceMapping",
            "Properties": {
                **settings,
                "EventSourceArn": {"Fn::GetAtt": ["Table", "StreamArn"]},
                "FunctionName": {"Ref": "Function"},
                "StartingPosition": "TRIM_HORIZON",
                "DestinationConfig": {
                    "OnFailure": {"Destination": {"Fn::GetAtt": ["Queue", "Arn"]}}
                },
            },
        },
    }
    made = deploy(laptop, resources)
    mapping = laptop.client("lambda").get_event_source_mapping(UUID=made["MappingRef"])
    assert {name: mapping[name] for name in settings} == settings
    assert mapping["DestinationConfig"]["OnFailure"]["Destination"].startswith("arn:aws:sqs:")
    laptop.client("cloudformation").delete_stack(StackName=made["stack"])
