"""A small AWS for the functions: real conditional writes (moto), and handlers that import anew."""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import boto3
import pytest
from moto import mock_aws

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "STAGE": "test",
    "ENDPOINT_NAME": "endpoint",
    "BASE_ID": "tiny-1",
    "MODELS_TABLE": "models",
    "REQUESTS_TABLE": "requests",
    "TOPIC_ARN": "arn:aws:sns:us-east-1:123456789012:topic",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that the stack gives to the functions."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def cold_start(environment: None) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a handler as a cold start does: settings and clients are made anew."""
    names: list[str] = []

    def load(function: str) -> ModuleType:
        name = f"lambdas.{function}.handler"
        sys.modules.pop(name, None)
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def tables(environment: None) -> Iterator[None]:
    """The two tables."""
    with mock_aws():
        dynamodb = boto3.client("dynamodb")
        for table, names in (("models", ["user_id", "model_row"]), ("requests", ["request_id"])):
            dynamodb.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[
                    {"AttributeName": name, "AttributeType": "S"} for name in names
                ],
                KeySchema=[
                    {"AttributeName": name, "KeyType": kind}
                    for name, kind in zip(names, ("HASH", "RANGE"), strict=False)
                ],
            )
        yield
