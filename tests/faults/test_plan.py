"""The seam itself: what each kind of fault looks like to a boto3 client, and what it executes."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

from tests.support.faults.plan import Kind, Plan, Rule

SESSION = {
    "region_name": "us-east-1",
    "aws_access_key_id": "test",
    "aws_secret_access_key": "test",
}
ONCE = Config(retries={"total_max_attempts": 1})
KEY = {"id": {"S": "a"}}


@pytest.fixture
def world() -> Iterator[None]:
    with mock_aws():
        dynamodb = session().client("dynamodb")
        dynamodb.create_table(
            TableName="t",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        )
        session().client("s3").create_bucket(Bucket="bucket")
        yield


@cache
def session() -> boto3.Session:
    """One session for all tests: it reads the service models once."""
    return boto3.Session(**SESSION)


def client(plan: Plan, service: str = "dynamodb", config: Config = ONCE) -> Any:
    made = session().client(service, config=config)
    plan.install(made)
    return made


def count(dynamodb: Any) -> None:
    dynamodb.update_item(
        TableName="t",
        Key=KEY,
        UpdateExpression="ADD n :one",
        ExpressionAttributeValues={":one": {"N": "1"}},
    )


def counted() -> int:
    item = session().client("dynamodb").get_item(TableName="t", Key=KEY).get("Item")
    return int(item["n"]["N"]) if item else 0


@pytest.mark.parametrize(
    ("kind", "code", "effects"),
    [
        (Kind.THROTTLE, "ThrottlingException", 0),
        (Kind.SERVER_ERROR, "InternalServerError", 0),
        (Kind.SLOW_DOWN, "SlowDown", 0),
        (Kind.ACCESS_DENIED, "AccessDeniedException", 0),
        (Kind.TIMEOUT, ReadTimeoutError, 0),
        (Kind.LOST_REPLY, ReadTimeoutError, 1),
        (Kind.LATENCY, None, 1),
        (Kind.DUPLICATE, None, 2),
    ],
)
def test_each_kind_strikes_before_or_after_the_effect(
    world: None, kind: Kind, code: str | type[Exception] | None, effects: int
) -> None:
    slept: list[float] = []
    rule = Rule("dynamodb:UpdateItem", kind, count=1, seconds=7)
    dynamodb = client(plan := Plan([rule], sleep=slept.append))
    if code is None:
        count(dynamodb)
    elif isinstance(code, str):
        with pytest.raises(ClientError) as raised:
            count(dynamodb)
        assert raised.value.response["Error"]["Code"] == code
    else:
        with pytest.raises(code):
            count(dynamodb)
    assert counted() == effects
    assert slept == ([7] if kind is Kind.LATENCY else [])
    assert plan.struck(kind) == 1
    count(dynamodb)
    assert counted() == effects + 1, "a good day again"


@pytest.mark.parametrize("kind", [Kind.THROTTLE, Kind.SERVER_ERROR, Kind.TIMEOUT, Kind.LOST_REPLY])
def test_botocore_s_own_retries_meet_the_plan_at_each_attempt(
    world: None, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    plan = Plan([Rule("dynamodb:*", kind, count=2)])
    count(client(plan, config=Config(retries={"mode": "standard", "total_max_attempts": 3})))
    assert plan.calls["dynamodb:UpdateItem"] == 3
    assert counted() == (3 if kind is Kind.LOST_REPLY else 1)


@pytest.mark.parametrize("service", ["s3", "sns", "sfn", "lambda", "sagemaker", "sqs", "events"])
def test_errors_have_the_form_of_their_service(service: str) -> None:
    calls: dict[str, tuple[str, str, dict[str, Any]]] = {
        "s3": ("s3", "list_buckets", {}),
        "sns": ("sns", "list_topics", {}),
        "sfn": ("stepfunctions", "list_state_machines", {}),
        "lambda": ("lambda", "list_functions", {}),
        "sagemaker": ("sagemaker", "list_models", {}),
        "sqs": ("sqs", "list_queues", {}),
        "events": ("events", "list_rules", {}),
    }
    name, method, arguments = calls[service]
    plan = Plan([Rule(f"{service}:*" if service != "events" else "*", Kind.THROTTLE)])
    with pytest.raises(ClientError) as raised:
        getattr(client(plan, name), method)(**arguments)
    assert raised.value.response["Error"] == {
        "Code": "ThrottlingException",
        "Message": "Rate exceeded",
        **({"Type": raised.value.response["Error"]["Type"]} if "Type" in _error(raised) else {}),
    }


def _error(raised: pytest.ExceptionInfo[ClientError]) -> dict[str, Any]:
    return dict(raised.value.response["Error"])


def test_a_body_that_is_a_file_can_be_sent_twice(world: None) -> None:
    s3 = client(Plan([Rule("s3:PutObject", Kind.DUPLICATE)]), "s3")
    s3.put_object(Bucket="bucket", Key="k", Body=io.BytesIO(b"photo" * 1_000))
    assert s3.get_object(Bucket="bucket", Key="k")["Body"].read() == b"photo" * 1_000


def test_matching_skip_and_count(world: None) -> None:
    plan = Plan([Rule("dynamodb:*", Kind.THROTTLE, matching='"ADD n', skip=1, count=1)])
    dynamodb = client(plan)
    dynamodb.get_item(TableName="t", Key=KEY)
    count(dynamodb)
    with pytest.raises(ClientError):
        count(dynamodb)
    count(dynamodb)
    assert counted() == 2


def test_the_same_seed_strikes_the_same_number_of_calls_from_any_threads(world: None) -> None:
    """Which thread is struck is chance; how many calls are is not."""
    expected = sum(random.Random(f"11 0 {n}").random() < 0.3 for n in range(60))

    def attempt(dynamodb: Any) -> bool:
        try:
            dynamodb.get_item(TableName="t", Key=KEY)
        except ClientError:
            return False
        return True

    for workers in (1, 6):
        dynamodb = client(plan := Plan([Rule("*", Kind.THROTTLE, probability=0.3)], seed=11))
        with ThreadPoolExecutor(workers) as pool:
            passed = list(pool.map(lambda _: attempt(dynamodb), range(60)))  # noqa: B023
        assert passed.count(False) == plan.struck() == expected > 5


def test_a_session_passes_the_plan_on_to_its_clients(world: None) -> None:
    fresh = boto3.Session(**SESSION)
    Plan([Rule("dynamodb:GetItem", Kind.THROTTLE, count=1)]).install(fresh)
    dynamodb = fresh.client("dynamodb", config=ONCE)
    with pytest.raises(ClientError):
        dynamodb.get_item(TableName="t", Key=KEY)
    assert dynamodb.get_item(TableName="t", Key=KEY)["ResponseMetadata"]["HTTPStatusCode"] == 200
