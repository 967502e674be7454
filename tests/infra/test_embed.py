"""Both constructs in somebody else's app, with somebody else's bucket, tables and endpoint."""

from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3

from infra.data import Data
from infra.onboarding import OnboardingWorkflow
from infra.parts import EndpointRef, Store
from infra.serving import PersonalModelEndpoint
from infra.settings import StageSettings
from infra.workflow import TrainingImage
from tests.infra.iam import HERE, Account, Call

SETTINGS = StageSettings(stage="shop", kms=False)
IMAGE = TrainingImage(
    "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.6.0-gpu", "ml.g5.xlarge"
)


def synth(app: App, stack: Stack) -> dict[str, Any]:
    template: dict[str, Any] = app.synth().get_stack_by_name(stack.stack_name).template
    return template


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bucket, tables and endpoint were made elsewhere, long ago."""
    app = App(outdir=str(tmp_path_factory.mktemp("imported")))
    stack = Stack(app, "Shop")
    bucket = s3.Bucket.from_bucket_name(stack, "Photos", "shop-photos")

    def table(name: str) -> dynamodb.ITable:
        return dynamodb.Table.from_table_name(stack, name, f"shop-{name}")

    store = Store(bucket, table("models"), table("requests"))
    PersonalModelEndpoint(stack, "Serving", SETTINGS, bucket=bucket, image="img:1")
    OnboardingWorkflow(
        stack,
        "Onboarding",
        SETTINGS,
        store=store,
        endpoint=EndpointRef.named("Shop-Endpoint"),
        training_image=IMAGE,
        base_id="sd-1.5",
        code=lambda_.Code.from_bucket(bucket, "limner.zip"),
    )
    return synth(app, stack)


def test_a_foreign_bucket_keeps_its_policy_and_the_roles_get_the_rights(
    imported: dict[str, Any],
) -> None:
    account = Account(imported)
    assert account.names("AWS::S3::BucketPolicy") == []
    assert account.names("AWS::S3::Bucket") == account.names("AWS::DynamoDB::Table") == []
    (training,) = [role for role in account.roles if "TrainingRole" in role]
    (serving,) = [role for role in account.roles if "ServingRole" in role]
    photo, model = "arn:aws:s3:::shop-photos/uploads/a/b/c", "arn:aws:s3:::shop-photos/models/a/x"
    assert account.allows(Call(training, "s3:GetObject", photo))
    assert not account.allows(Call(training, "s3:GetObject", model))
    assert account.allows(Call(serving, "s3:GetObject", model))
    assert not account.allows(Call(serving, "s3:GetObject", photo))


def test_an_endpoint_known_by_its_name_is_invoked_by_its_arn(imported: dict[str, Any]) -> None:
    """Calls name it as it is called; its ARN has no capitals."""
    account = Account(imported)
    (smoke_test,) = [role for role in account.roles if "SmokeTestRole" in role]
    for name, may in (("shop-endpoint", True), ("Shop-Endpoint", False)):
        arn = f"arn:aws:sagemaker:{HERE}:endpoint/{name}"
        assert account.allows(Call(smoke_test, "sagemaker:InvokeEndpoint", arn)) == may


def test_jobs_pull_their_image_from_whosever_repository(imported: dict[str, Any]) -> None:
    account = Account(imported)
    (training,) = [role for role in account.roles if "TrainingRole" in role]
    (serving,) = [role for role in account.roles if "ServingRole" in role]
    theirs = "arn:aws:ecr:us-east-1:763104351884:repository/pytorch-training"
    assert account.allows(Call(training, "ecr:BatchGetImage", theirs))
    assert not account.allows(Call(serving, "ecr:BatchGetImage", theirs))
    own = f"arn:aws:ecr:{HERE}:repository/limner/inference"
    assert account.allows(Call(serving, "ecr:BatchGetImage", own))


def test_without_a_stream_the_schedule_does_it(imported: dict[str, Any]) -> None:
    kinds = [item["Type"] for item in imported["Resources"].values()]
    assert "AWS::Lambda::EventSourceMapping" not in kinds
    schedules = [
        item["Properties"]["ScheduleExpression"]
        for item in imported["Resources"].values()
        if item["Type"] == "AWS::Events::Rule" and "ScheduleExpression" in item["Properties"]
    ]
    assert sorted(schedules) == ["rate(1 minute)", "rate(5 minutes)"]


def test_the_functions_use_the_foreign_names(imported: dict[str, Any]) -> None:
    environments = [
        item["Properties"]["Environment"]["Variables"]
        for item in imported["Resources"].values()
        if item["Type"] == "AWS::Lambda::Function"
    ]
    names = {str(value) for variables in environments for value in variables.values()}
    assert {"shop-photos", "shop-requests", "Shop-Endpoint"} <= names


def test_data_of_another_stack_of_the_same_app(tmp_path: Path) -> None:
    """No circle between the stacks: the bucket's policy stays where the bucket is."""
    app = App(outdir=str(tmp_path))
    theirs, ours = Stack(app, "Data"), Stack(app, "Limner")
    data = Data(theirs, "Data", SETTINGS)
    endpoint = PersonalModelEndpoint(ours, "Serving", SETTINGS, bucket=data.bucket, image="img:1")
    OnboardingWorkflow(
        ours,
        "Onboarding",
        SETTINGS,
        store=data.store,
        endpoint=endpoint.endpoint,
        training_image=IMAGE,
        base_id="sd-1.5",
        code=lambda_.Code.from_bucket(data.bucket, "limner.zip"),
    )
    template = synth(app, ours)
    kinds = [item["Type"] for item in template["Resources"].values()]
    assert kinds.count("AWS::Lambda::EventSourceMapping") == 1
    assert kinds.count("AWS::S3::BucketPolicy") == 0
