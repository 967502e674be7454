"""No wildcard without a reason: the template against the list in docs/security.md."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.bundle import ROOT
from infra.publish import Synthesis
from tests.infra.iam import listed

SECURITY = ROOT / "docs" / "security.md"


def statements(made: Synthesis) -> Iterator[tuple[str, dict[str, Any]]]:
    """The statements of all policies of roles."""
    for name, resource in made.template["Resources"].items():
        if resource["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                yield name, statement
        assert not resource.get("Properties", {}).get("Policies"), name


def text(resource: Any) -> str:
    """A resource as docs/security.md shows it: the part after region and account."""
    match resource:
        case str():
            return resource
        case {"Fn::Join": ["", parts]}:
            return "".join(part if isinstance(part, str) else "…" for part in parts)
        case _:
            return json.dumps(resource)


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of docs/security.md."""
    body = SECURITY.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    rows = [line for line in body.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def forced(made: Synthesis) -> set[tuple[str, str]]:
    """Each action on a resource with a wildcard, and that resource."""
    return {
        (action, text(resource).rpartition("…:")[2])
        for _, statement in statements(made)
        if statement["Effect"] == "Allow"
        for resource in listed(statement["Resource"])
        if "*" in text(resource)
        for action in listed(statement["Action"])
    }


def test_no_action_is_a_wildcard(stage: Synthesis) -> None:
    for name, statement in statements(stage):
        assert "NotAction" not in statement
        for action in listed(statement["Action"]):
            assert "*" not in action, f"{name}: {action}"


def test_resource_policies_have_wildcard_actions_only_to_deny(stage: Synthesis) -> None:
    for resource in stage.template["Resources"].values():
        if not resource["Type"].endswith(("::BucketPolicy", "::QueuePolicy", "::TopicPolicy")):
            continue
        for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
            if any("*" in action for action in listed(statement["Action"])):
                assert statement["Effect"] == "Deny"


def test_the_list_of_forced_wildcards_is_the_templates_own(
    local: Synthesis, cloud: Synthesis
) -> None:
    written = set()
    for actions, resource, _ in table("Wildcards that AWS forces"):
        (pattern,) = re.findall(r"`([^`]+)`", resource)
        written |= {(action, pattern) for action in re.findall(r"`([^`]+)`", actions)}
    assert forced(cloud) == written
    local_stage = {
        (action, item.replace("limner-local", "limner-prod")) for action, item in forced(local)
    }
    assert local_stage == written


def test_roles_have_no_policies_written_by_aws(stage: Synthesis) -> None:
    for name, resource in stage.template["Resources"].items():
        for policy in resource.get("Properties", {}).get("ManagedPolicyArns", []):
            assert set(policy) == {"Ref"}, f"{name}: {policy}"


def test_functions_are_called_by_exact_name(stage: Synthesis) -> None:
    for _, statement in statements(stage):
        if "lambda:InvokeFunction" in listed(statement["Action"]):
            for resource in listed(statement["Resource"]):
                assert set(resource) == {"Fn::GetAtt"}


def test_actions_that_iam_does_not_know_are_not_asked_for(stage: Synthesis) -> None:
    asked = {action for _, statement in statements(stage) for action in listed(statement["Action"])}
    assert "s3:copyObject" not in asked
    assert "dynamodb:transactWriteItems" not in asked
    assert {"dynamodb:UpdateItem", "sagemaker:CreateTrainingJob"} <= asked


def test_the_page_exists() -> None:
    assert Path(SECURITY).is_file()
