"""Where the resources come from, and how AWS's errors are told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
)
from botocore.stub import Stubber

from limner.client import Clients, Deployment, Limner
from limner.client.aws import find_deployment
from limner.client.errors import translate
from limner.contracts.errors import LimnerError
from limner.settings import STACK_OUTPUTS, Settings
from tests.unit.client.world import CREDENTIALS, World, session

DEPLOYMENT = Deployment(
    bucket="b",
    models_table="m",
    requests_table="r",
    onboard_machine_arn="arn:aws:states:us-east-1:123456789012:stateMachine:onboard",
    endpoint_name="e",
    base_id="tiny-1",
)
OUTPUTS = {STACK_OUTPUTS[name]: value for name, value in asdict(DEPLOYMENT).items()}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "LIMNER_STAGE", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


def stack(outputs: dict[str, str]) -> dict[str, Any]:
    described = {
        "StackName": "limner-qa",
        "CreationTime": "2026-01-01T00:00:00Z",
        "StackStatus": "CREATE_COMPLETE",
        "Outputs": [{"OutputKey": k, "OutputValue": v} for k, v in outputs.items()],
    }
    return {"Stacks": [described]}


def test_the_deployment_comes_from_the_stacks_outputs() -> None:
    clients = Clients.of(session())
    with Stubber(clients.cloudformation) as stub:
        stub.add_response("describe_stacks", stack(OUTPUTS), {"StackName": "limner-qa"})
        assert find_deployment(clients.cloudformation, "qa") == DEPLOYMENT


def test_an_older_stack_lacks_outputs_that_are_asked_for_later() -> None:
    needed = {name: value for name, value in OUTPUTS.items() if value}
    found = Deployment.from_outputs(needed)
    assert found == DEPLOYMENT
    assert found.register_function == ""
    newer = {**needed, "RegisterFunctionName": "f", "BusName": "bus", "Other": "x"}
    assert Deployment.from_outputs(newer).register_function == "f"


def test_a_stack_without_an_output_is_named() -> None:
    clients = Clients.of(session())
    some = {name: value for name, value in OUTPUTS.items() if name != "EndpointName"}
    with Stubber(clients.cloudformation) as stub:
        stub.add_response("describe_stacks", stack(some))
        with pytest.raises(LimnerError, match="no output EndpointName") as caught:
            find_deployment(clients.cloudformation, "qa")
    assert caught.value.code == "NOT_DEPLOYED"


@pytest.mark.parametrize(
    ("message", "code"),
    [("Stack with id limner-qa does not exist", "NOT_DEPLOYED"), ("1 error", "AWS_ERROR")],
)
def test_a_missing_stack(message: str, code: str) -> None:
    clients = Clients.of(session())
    with Stubber(clients.cloudformation) as stub:
        stub.add_client_error("describe_stacks", "ValidationError", message)
        with pytest.raises(LimnerError) as caught:
            find_deployment(clients.cloudformation, "qa")
    assert caught.value.code == code


def set_all(monkeypatch: pytest.MonkeyPatch, without: str = "") -> None:
    for name, value in asdict(DEPLOYMENT).items():
        if name != without:
            monkeypatch.setenv(f"LIMNER_{name.upper()}", value)


def test_settings_need_no_cloudformation(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch)

    def forbidden(*_: object) -> Deployment:
        raise AssertionError("CloudFormation was asked")

    monkeypatch.setattr("limner.client.facade.find_deployment", forbidden)
    assert Limner.connect(session=session()).deployment == DEPLOYMENT
    monkeypatch.setenv("LIMNER_REGISTER_FUNCTION", "f")
    assert Limner.connect(session=session()).deployment.register_function == "f"
    other = Deployment(**{**asdict(DEPLOYMENT), "bucket": "other"})
    assert Limner.connect(session=session(), deployment=other).deployment == other
    with pytest.raises(AssertionError):  # a named stage is looked up
        Limner.connect("qa", session=session())


def test_settings_must_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, without="models_table")
    with pytest.raises(LimnerError, match="Set LIMNER_MODELS_TABLE too") as caught:
        Limner.connect(session=session())
    assert caught.value.code == "INVALID_INPUT"
    assert Settings(models_table="m").deployment() == Deployment(
        **{**asdict(DEPLOYMENT), "models_table": "m"}
    )


def test_a_stage_with_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for connect in (lambda: Limner.connect("No/pe"), Limner.connect):
        monkeypatch.setenv("LIMNER_STAGE", "No/pe")
        with pytest.raises(LimnerError, match="stage") as caught:
            connect()
        assert caught.value.code == "INVALID_INPUT"


def test_the_endpoint_comes_from_the_standard_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    clients = Limner.connect(session=session(), deployment=DEPLOYMENT).clients
    urls = {client.meta.endpoint_url for client in vars(clients).values()}
    assert urls == {"http://localhost:9"}
    # A loopback host has no sub-domains for buckets.
    signed = clients.s3.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    assert signed.startswith("http://localhost:9/b/k")


def test_without_a_region() -> None:
    with pytest.raises(LimnerError, match="No AWS region") as caught:
        Clients.of(boto3.Session(**CREDENTIALS))
    assert caught.value.code == "AWS_ERROR"


def test_execution_arns() -> None:
    assert (
        DEPLOYMENT.execution_arn("r1-1")
        == "arn:aws:states:us-east-1:123456789012:execution:onboard:r1-1"
    )
    assert DEPLOYMENT.works_alone(DEPLOYMENT.execution_arn("r1-1"))
    assert not DEPLOYMENT.works_alone(
        "arn:aws:states:us-east-1:123456789012:execution:onboard_batch:b1"
    )


def answer(operation: str, code: str, message: str = "m") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (answer("PutItem", "ProvisionedThroughputExceededException"), "THROTTLED"),
        (answer("StartExecution", "ExecutionLimitExceeded"), "THROTTLED"),
        (answer("PutObject", "SlowDown"), "THROTTLED"),
        (answer("PutObject", "NoSuchBucket"), "NOT_DEPLOYED"),
        (answer("StartExecution", "StateMachineDoesNotExist"), "NOT_DEPLOYED"),
        (answer("GetItem", "ResourceNotFoundException"), "NOT_DEPLOYED"),
        (answer("Invoke", "ResourceNotFoundException"), "NOT_DEPLOYED"),
        (answer("DescribeTrainingJob", "ResourceNotFoundException"), "AWS_ERROR"),
        (answer("GetItem", "AccessDeniedException"), "AWS_ERROR"),
        (answer("GetItem", ""), "AWS_ERROR"),
        (NoCredentialsError(), "AWS_ERROR"),
        (NoRegionError(), "AWS_ERROR"),
        (ProfileNotFound(profile="p"), "AWS_ERROR"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1/x"), "LAPTOP_NOT_RUNNING"),
        (EndpointConnectionError(endpoint_url="https://s3.amazonaws.com/"), "AWS_ERROR"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_error_has_its_code(error: Any, code: str) -> None:
    assert translate(error).code == code


def test_an_error_of_aws_names_the_call_and_the_reason() -> None:
    text = str(translate(answer("GetItem", "AccessDeniedException", "not authorized to x")))
    assert "GetItem: AccessDeniedException: not authorized to x" in text
    assert "Fix: Check credentials" in text


def test_a_missing_table_is_told_through_the_client(aws: World) -> None:
    aws.clients.dynamodb.delete_table(TableName="requests")
    with pytest.raises(LimnerError) as caught:
        aws.limner.request("r1")
    assert caught.value.code == "NOT_DEPLOYED"
