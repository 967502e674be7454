"""Nobody may do more than the work at hand: no wildcard without a reason given here."""

import json
from collections.abc import Iterator
from typing import Any

from infra.publish import Synthesis
from limner.contracts import keys

# Actions that AWS offers for no single resource, or for none that is known beforehand.
EVERYWHERE = {
    "cloudwatch:PutMetricData": "knows no resource; bound to SageMaker's namespaces",
    "ecr:GetAuthorizationToken": "knows no resource; gives a token, no image",
    "logs:CreateLogDelivery": "log delivery of Step Functions knows no resource",
    "logs:DeleteLogDelivery": "log delivery of Step Functions knows no resource",
    "logs:DescribeLogGroups": "log delivery of Step Functions knows no resource",
    "logs:DescribeResourcePolicies": "log delivery of Step Functions knows no resource",
    "logs:GetLogDelivery": "log delivery of Step Functions knows no resource",
    "logs:ListLogDeliveries": "log delivery of Step Functions knows no resource",
    "logs:PutResourcePolicy": "log delivery of Step Functions knows no resource",
    "logs:UpdateLogDelivery": "log delivery of Step Functions knows no resource",
    "xray:GetSamplingRules": "X-Ray knows no resource",
    "xray:GetSamplingTargets": "X-Ray knows no resource",
    "xray:PutTelemetryRecords": "X-Ray knows no resource",
    "xray:PutTraceSegments": "X-Ray knows no resource",
}

# Ends of resources that stand for many: one prefix, one family, one function's versions.
FAMILIES = {
    **{f"/{folder}/*": "objects of one prefix" for folder in (keys.UPLOADS, keys.BASES, keys.JOBS)},
    f"/{keys.PREVIEWS}/*": "objects of one prefix",
    f"/{keys.MODELS}/*": "objects of one prefix",
    ":training-job/limner-*": "this product's jobs; their names end in request and attempt",
    ":repository/limner/*": "this product's images",
    ":log-group:/aws/sagemaker/Endpoints/*": "SageMaker names the group after the endpoint",
    ":log-stream:*": "streams of one log group",
    ":*": "versions of one function (CDK grants them with the function)",
}


def statements(made: Synthesis) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, resource in made.template["Resources"].items():
        if resource["Type"] == "AWS::IAM::Policy":
            for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                yield name, statement
        written_by_aws = resource.get("Properties", {}).get("ManagedPolicyArns")
        assert written_by_aws is None, name


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text(resource: Any) -> str:
    """A resource with its references shown as JSON in between."""
    match resource:
        case str():
            return resource
        case {"Fn::Join": ["", parts]}:
            return "".join(text(part) for part in parts)
        case _:
            return json.dumps(resource)


def test_no_action_is_a_wildcard(stage: Synthesis) -> None:
    for name, statement in statements(stage):
        assert statement["Effect"] == "Allow"
        for action in listed(statement["Action"]):
            assert "*" not in action, f"{name}: {action}"


def test_every_wildcard_resource_has_a_reason(stage: Synthesis) -> None:
    for name, statement in statements(stage):
        for resource in map(text, listed(statement["Resource"])):
            if resource == "*":
                assert set(listed(statement["Action"])) <= set(EVERYWHERE), name
            elif "*" in resource:
                assert resource.endswith(tuple(FAMILIES)), f"{name}: {resource}"
                assert resource.count("*") == 1 or ":log-stream:" in resource


def test_every_reason_is_needed(local: Synthesis, cloud: Synthesis) -> None:
    used: set[str] = set()
    ends: set[str] = set()
    for made in (local, cloud):
        for _, statement in statements(made):
            for resource in map(text, listed(statement["Resource"])):
                if resource == "*":
                    used |= set(listed(statement["Action"]))
                ends |= {end for end in FAMILIES if resource.endswith(end)}
    assert used == set(EVERYWHERE)
    assert ends == set(FAMILIES)


def test_the_role_is_passed_to_sagemaker_alone(stage: Synthesis) -> None:
    (passing,) = [s for _, s in statements(stage) if "iam:PassRole" in listed(s["Action"])]
    assert passing["Condition"] == {
        "StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}
    }
    (role,) = listed(passing["Resource"])
    assert role == {"Fn::GetAtt": [role["Fn::GetAtt"][0], "Arn"]}
    assert stage.template["Resources"][role["Fn::GetAtt"][0]]["Type"] == "AWS::IAM::Role"


def test_training_neither_reads_nor_writes_models(stage: Synthesis) -> None:
    rights = [
        text(resource)
        for name, statement in statements(stage)
        if name.startswith("TrainingRole")
        for resource in listed(statement["Resource"])
    ]
    assert any(right.endswith(f"/{keys.UPLOADS}/*") for right in rights)
    assert not any(f"/{keys.MODELS}/" in right for right in rights)


def test_actions_that_iam_does_not_know_are_not_asked_for(stage: Synthesis) -> None:
    asked = {action for _, statement in statements(stage) for action in listed(statement["Action"])}
    assert "s3:copyObject" not in asked
    assert "dynamodb:transactWriteItems" not in asked
    assert {"s3:GetObject", "s3:PutObject", "dynamodb:UpdateItem"} <= asked
