"""What the stack promises: data that is kept safe, outputs that others read."""

from typing import Any

import pytest

from infra.publish import Synthesis
from limner.contracts import keys

OUTPUTS = {
    *("BucketName", "ModelsTableName", "RequestsTableName", "OnboardMachineArn"),
    *("EndpointName", "TopicArn", "BaseId"),
}


def of_type(made: Synthesis, kind: str) -> list[dict[str, Any]]:
    return [item for item in made.template["Resources"].values() if item["Type"] == kind]


def properties(made: Synthesis, kind: str) -> dict[str, Any]:
    (only,) = of_type(made, kind)
    found: dict[str, Any] = only["Properties"]
    return found


def test_outputs(stage: Synthesis) -> None:
    assert set(stage.template["Outputs"]) == OUTPUTS


def test_tables_are_paid_by_request_and_can_be_restored(stage: Synthesis) -> None:
    tables = [item["Properties"] for item in of_type(stage, "AWS::DynamoDB::Table")]
    assert len(tables) == 2
    for table in tables:
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    (index,) = next(t for t in tables if "GlobalSecondaryIndexes" in t)["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "by_user"
    assert [key["AttributeName"] for key in index["KeySchema"]] == ["user_id", "created_at"]


def test_the_bucket_is_closed_versioned_and_encrypted(stage: Synthesis) -> None:
    bucket = properties(stage, "AWS::S3::Bucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket["BucketEncryption"]
    (statement,) = properties(stage, "AWS::S3::BucketPolicy")["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_photos_go_away_and_models_stay(stage: Synthesis) -> None:
    rules = properties(stage, "AWS::S3::Bucket")["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule}
    assert expiring == {f"{keys.UPLOADS}/", f"{keys.PREVIEWS}/", f"{keys.JOBS}/"}


def test_users_data_outlive_a_stack_on_aws_only(local: Synthesis, cloud: Synthesis) -> None:
    for made, policy in ((local, "Delete"), (cloud, "Retain")):
        kept = of_type(made, "AWS::DynamoDB::Table") + of_type(made, "AWS::S3::Bucket")
        assert {item["DeletionPolicy"] for item in kept} == {policy}


def test_the_endpoint_serves_many_models_from_one_prefix(stage: Synthesis) -> None:
    container = properties(stage, "AWS::SageMaker::Model")["PrimaryContainer"]
    assert container["Mode"] == "MultiModel"
    _, parts = container["ModelDataUrl"]["Fn::Join"]
    assert parts[0] == "s3://"
    assert parts[-1] == "/models/"


def test_the_rule_hears_of_every_end_but_a_good_one(stage: Synthesis) -> None:
    pattern = properties(stage, "AWS::Events::Rule")["EventPattern"]
    assert pattern["detail"]["status"] == ["ABORTED", "FAILED", "TIMED_OUT"]
    (machine,) = pattern["detail"]["stateMachineArn"]
    assert stage.template["Resources"][machine["Ref"]]["Type"] == "AWS::StepFunctions::StateMachine"


def test_the_machine_logs_events_without_users_words(cloud: Synthesis) -> None:
    machine = properties(cloud, "AWS::StepFunctions::StateMachine")
    assert machine["LoggingConfiguration"]["IncludeExecutionData"] is False
    assert machine["LoggingConfiguration"]["Level"] == "ALL"
    assert machine["TracingConfiguration"] == {"Enabled": True}


@pytest.mark.parametrize("kind", ["AWS::DynamoDB::Table", "AWS::S3::Bucket", "AWS::IAM::Role"])
def test_cloudformation_chooses_the_names(stage: Synthesis, kind: str) -> None:
    for item in of_type(stage, kind):
        assert not {"TableName", "BucketName", "RoleName"} & set(item.get("Properties", {}))
