"""What the stack promises: data that is kept safe, outputs that others read."""

from typing import Any

import pytest
from cfnlint import api
from cfnlint.config import ManualArgs

from infra.publish import Synthesis, render
from infra.settings import StageSettings
from limner.contracts import keys
from limner.settings import STACK_OUTPUTS
from workflows import retries

OUTPUTS = {
    *("BucketName", "ModelsTableName", "RequestsTableName", "OnboardMachineArn"),
    *("OnboardBatchMachineArn", "EndpointName", "EndpointArn", "TopicArn", "BaseId", "BusName"),
    *("RegisterFunctionName", "DispatchFunctionName", "ReconcileFunctionName"),
    *("FailedEventsQueueUrl", "WorkerMachineArn"),
}


def of_type(made: Synthesis, kind: str) -> list[dict[str, Any]]:
    return [item for item in made.template["Resources"].values() if item["Type"] == kind]


def properties(made: Synthesis, kind: str) -> dict[str, Any]:
    (only,) = of_type(made, kind)
    found: dict[str, Any] = only["Properties"]
    return found


def data_bucket(made: Synthesis) -> dict[str, Any]:
    (bucket,) = [
        item["Properties"]
        for item in of_type(made, "AWS::S3::Bucket")
        if "VersioningConfiguration" in item["Properties"]
    ]
    found: dict[str, Any] = bucket
    return found


def test_outputs(stage: Synthesis) -> None:
    assert set(stage.template["Outputs"]) == OUTPUTS
    assert set(STACK_OUTPUTS.values()) <= OUTPUTS


def test_tables_are_paid_by_request_restored_and_forgetful(stage: Synthesis) -> None:
    tables = [item["Properties"] for item in of_type(stage, "AWS::DynamoDB::Table")]
    assert len(tables) == 2
    for table in tables:
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["StreamSpecification"] == {"StreamViewType": "NEW_AND_OLD_IMAGES"}
        assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}


def test_indexes(stage: Synthesis) -> None:
    (requests,) = [
        item["Properties"]
        for item in of_type(stage, "AWS::DynamoDB::Table")
        if "GlobalSecondaryIndexes" in item["Properties"]
    ]
    found = {
        index["IndexName"]: [key["AttributeName"] for key in index["KeySchema"]]
        for index in requests["GlobalSecondaryIndexes"]
    }
    assert found == {
        "by_user": ["user_id", "created_at"],
        "queue": ["queue", "queued_at"],
        "open": ["open", "updated_at"],
    }
    projections = {
        index["Projection"]["ProjectionType"] for index in requests["GlobalSecondaryIndexes"]
    }
    assert projections == {"ALL"}


def test_buckets_are_closed_encrypted_and_logged(stage: Synthesis) -> None:
    for item in of_type(stage, "AWS::S3::Bucket"):
        assert set(item["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
        assert item["Properties"]["BucketEncryption"]
    assert data_bucket(stage)["VersioningConfiguration"] == {"Status": "Enabled"}
    assert data_bucket(stage)["LoggingConfiguration"]["DestinationBucketName"]
    for policy in of_type(stage, "AWS::S3::BucketPolicy"):
        first = policy["Properties"]["PolicyDocument"]["Statement"][0]
        assert first["Effect"] == "Deny"
        assert first["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_key_is_rotated_and_used_by_all(cloud: Synthesis, local: Synthesis) -> None:
    assert of_type(local, "AWS::KMS::Key") == []
    assert properties(cloud, "AWS::KMS::Key")["EnableKeyRotation"] is True
    (name,) = [n for n, i in cloud.template["Resources"].items() if i["Type"] == "AWS::KMS::Key"]
    for kind in (
        *("AWS::DynamoDB::Table", "AWS::SNS::Topic", "AWS::SQS::Queue", "AWS::Logs::LogGroup"),
    ):
        for item in of_type(cloud, kind):
            assert name in render(item["Properties"]), kind
    assert name in render(data_bucket(cloud)["BucketEncryption"])


def test_what_is_a_users_goes_away_and_models_stay(stage: Synthesis) -> None:
    rules = data_bucket(stage)["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule}
    temporary = (keys.UPLOADS, keys.CONFIGS, keys.PREVIEWS, keys.JOBS, keys.BATCHES)
    assert expiring == {f"{folder}/" for folder in (*temporary, keys.GENERATIONS)}


def test_users_data_outlive_a_stack_on_aws_only(local: Synthesis, cloud: Synthesis) -> None:
    for made, policy in ((local, "Delete"), (cloud, "Retain")):
        kept = of_type(made, "AWS::DynamoDB::Table") + of_type(made, "AWS::S3::Bucket")
        assert {item["DeletionPolicy"] for item in kept} == {policy}
    for table in of_type(cloud, "AWS::DynamoDB::Table"):
        assert table["Properties"]["DeletionProtectionEnabled"] is True


def test_the_endpoint_serves_many_models_from_one_prefix(stage: Synthesis) -> None:
    container = properties(stage, "AWS::SageMaker::Model")["PrimaryContainer"]
    assert container["Mode"] == "MultiModel"
    _, parts = container["ModelDataUrl"]["Fn::Join"]
    assert parts[0] == "s3://"
    assert parts[-1] == "/models/"
    assert "Environment" not in container, "no capture, unless it is asked for"


def test_the_endpoint_scales_by_invocations(stage: Synthesis) -> None:
    target = properties(stage, "AWS::ApplicationAutoScaling::ScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 4)
    policy = properties(stage, "AWS::ApplicationAutoScaling::ScalingPolicy")
    (kind,) = policy["TargetTrackingScalingPolicyConfiguration"][
        "PredefinedMetricSpecification"
    ].values()
    assert kind == "SageMakerVariantInvocationsPerInstance"
    # Or each deployment would take back the machines that scaling has added.
    assert properties(stage, "AWS::SageMaker::Endpoint")["RetainAllVariantProperties"] is True


def test_machines_log_events_without_users_words(stage: Synthesis) -> None:
    machines = of_type(stage, "AWS::StepFunctions::StateMachine")
    assert len(machines) == 3
    for machine in machines:
        assert machine["Properties"]["LoggingConfiguration"]["IncludeExecutionData"] is False
        assert machine["Properties"]["LoggingConfiguration"]["Level"] == "ALL"
        assert machine["Properties"]["TracingConfiguration"] == {"Enabled": True}


def test_functions_of_machines_end_before_their_tasks(stage: Synthesis) -> None:
    """Or Step Functions gives up on a call that still runs, and repeats it beside itself."""
    timeouts = {
        item["Properties"]["Handler"].split(".")[1]: item["Properties"]["Timeout"]
        for item in of_type(stage, "AWS::Lambda::Function")
    }
    for function, state in {
        "smoke_test": "SmokeTest",
        "record_failure": "RecordFailure",
        "pack_tasks": "PackTasks",
        "collect_results": "CollectResults",
    }.items():
        policies = retries.ONBOARD_BATCH
        assert timeouts[function] < policies[state].timeout_s, function


def test_the_lease_outlasts_its_holder(stage: Synthesis) -> None:
    (dispatch,) = [
        item["Properties"]
        for item in of_type(stage, "AWS::Lambda::Function")
        if ".dispatch." in item["Properties"]["Handler"]
    ]
    assert dispatch["Timeout"] < int(dispatch["Environment"]["Variables"]["LEASE_S"])


@pytest.mark.parametrize("kind", ["AWS::DynamoDB::Table", "AWS::S3::Bucket", "AWS::IAM::Role"])
def test_cloudformation_chooses_the_names(stage: Synthesis, kind: str) -> None:
    for item in of_type(stage, kind):
        assert not {"TableName", "BucketName", "RoleName"} & set(item.get("Properties", {}))


def test_cfn_lint_has_nothing_to_say(stage: Synthesis) -> None:
    # W3005: CDK writes DependsOn for a role next to its GetAtt, to wait for the role's policy.
    config = ManualArgs(regions=["us-east-1"], ignore_checks=["W3005"])
    assert [str(match) for match in api.lint(render(stage.template), config=config)] == []


def test_the_machines_differ_by_nothing_but_the_stage(local: Synthesis, cloud: Synthesis) -> None:
    kinds = [
        sorted(
            item["Type"]
            for item in made.template["Resources"].values()
            if item["Type"] != "AWS::KMS::Key"
        )
        for made in (local, cloud)
    ]
    assert kinds[0] == kinds[1]
    assert StageSettings(stage="prod").has_key
