"""The other way to make a job: what ``call="sdk"`` changes in a machine, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_stepfunctions as sfn

import infra  # finds a Node for aws_cdk  # noqa: F401
from workflows.jobs import Call, JobSettings
from workflows.onboard import Onboard, Uses
from workflows.tasks import TrainingJobs

ACCOUNT = "arn:aws:{}:us-east-1:123456789012:{}"


class Made:
    """A machine ``onboard`` that makes its jobs in one of the two ways."""

    def __init__(self, app: App, call: Call) -> None:
        stack = Stack(app, call)

        def function(name: str) -> lambda_.IFunction:
            arn = ACCOUNT.format("lambda", f"function:{name}")
            return lambda_.Function.from_function_arn(stack, name, arn)

        role = iam.Role.from_role_arn(stack, "Role", "arn:aws:iam::123456789012:role/training")
        uses = Uses(
            bucket=s3.Bucket.from_bucket_name(stack, "Bucket", "bucket"),
            models=dynamodb.Table.from_table_name(stack, "Models", "models"),
            requests=dynamodb.Table.from_table_name(stack, "Requests", "requests"),
            topic=sns.Topic.from_topic_arn(stack, "Topic", ACCOUNT.format("sns", "topic")),
            inspect_artifact=function("inspect"),
            smoke_test=function("smoke"),
            record_failure=function("failure"),
            jobs=TrainingJobs("limner-", role),
            training_image="image",
            training_instance_types="ml.g5.xlarge",
            base_id="tiny-1",
            job=JobSettings(call=call),
        )
        steps = Onboard(stack, "Steps", uses)
        graph = sfn.StateGraph(steps.start.start_state, "test")
        self.states: dict[str, Any] = json.loads(json.dumps(stack.resolve(graph.to_graph_json())))[
            "States"
        ]
        self.actions = {
            action
            for statement in steps.statements
            for action in statement.to_statement_json()["Action"]
            if isinstance(statement.to_statement_json()["Action"], list)
        }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    outdir: Path = tmp_path_factory.mktemp("cdk")
    app = App(analytics_reporting=False, outdir=str(outdir))
    return Made(app, "sync"), Made(app, "sdk")


def test_only_the_call_and_what_follows_it_are_different(both: tuple[Made, Made]) -> None:
    sync, sdk = both[0].states, both[1].states
    assert set(sync) == set(sdk)
    assert [name for name in sync if sync[name] != sdk[name]] == ["FineTune"]
    changed = {
        field for field in sync["FineTune"] if sync["FineTune"][field] != sdk["FineTune"][field]
    }
    assert changed == {"Resource", "Next"}
    assert (
        json.dumps(sdk["FineTune"]["Resource"])
        .rstrip('"}]')
        .endswith(":states:::aws-sdk:sagemaker:createTrainingJob")
    )
    assert sdk["FineTune"]["Next"] == "AwaitJob"


def test_the_rule_that_tells_step_functions_is_not_needed(both: tuple[Made, Made]) -> None:
    assert any(action.startswith("events:") for action in both[0].actions)
    assert not any(action.startswith("events:") for action in both[1].actions)
