"""A deployed stage on moto, and hands to play the state machine and to injure calls."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import boto3
from moto import mock_aws
from PIL import Image

from limner.client import Clients, Clock, Deployment, Limner, TrainingConfig
from limner.contracts import keys
from limner.registry import Request

REGION = "us-east-1"
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
MACHINE = {"StartAt": "A", "States": {"A": {"Type": "Pass", "End": True}}}


@cache
def photo(number: int, kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    """A small image that differs from all others by its colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number % 256, 90)).save(buffer, kind)
    return buffer.getvalue()


@cache
def session() -> boto3.Session:
    """One session for all tests: it reads the service models once."""
    return boto3.Session(**CREDENTIALS, region_name=REGION)


def photos(count: int = 3, first: int = 0) -> list[bytes]:
    return [photo(first + number) for number in range(count)]


@dataclass
class FakeClock:
    """Time that passes in sleep alone, and does what is planned on its way."""

    seconds: float = 100.0
    sleeps: list[float] = field(default_factory=list)
    plan: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.seconds, sleep=self.sleep)

    def after(self, seconds: float, then: Callable[[], object]) -> None:
        self.plan.append((self.seconds + seconds, then))

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.seconds += seconds
        for due in [entry for entry in self.plan if entry[0] <= self.seconds]:
            self.plan.remove(due)
            due[1]()


@dataclass
class World:
    limner: Limner
    clock: FakeClock

    @property
    def clients(self) -> Clients:
        return self.limner.clients

    @property
    def deployment(self) -> Deployment:
        return self.limner.deployment

    def uploaded(self, prefix: str = "uploads/") -> list[str]:
        found = self.clients.s3.list_objects_v2(Bucket=self.deployment.bucket, Prefix=prefix)
        return [item["Key"] for item in found.get("Contents", [])]

    def config(self, request_id: str) -> TrainingConfig:
        """The training config as the job will read it."""
        key = keys.config_prefix(request_id) + keys.CONFIG_FILE
        found = self.clients.s3.get_object(Bucket=self.deployment.bucket, Key=key)
        return TrainingConfig.model_validate_json(found["Body"].read())

    def executions(self) -> list[str]:
        found = self.clients.stepfunctions.list_executions(
            stateMachineArn=self.deployment.onboard_machine_arn
        )
        return [execution["name"] for execution in found["executions"]]

    def row(self, request_id: str) -> dict[str, Any] | None:
        return self.clients.dynamodb.get_item(
            TableName=self.deployment.requests_table, Key={"request_id": {"S": request_id}}
        ).get("Item")

    def put_request(self, **values: Any) -> Request:
        """Writes a request as the state machine would have left it."""
        moment = "2026-01-01T00:00:00.000Z"
        given = {"model_id": "default", "created_at": moment, "updated_at": moment, **values}
        request = Request.model_validate(given)
        self.clients.dynamodb.put_item(
            TableName=self.deployment.requests_table, Item=request.to_item()
        )
        return request

    def move(self, request: Request, **values: Any) -> Request:
        return self.put_request(**{**request.model_dump(), **values})

    def put_model(self, user_id: str, model_id: str = "default", live: int | None = 1) -> None:
        """Writes a model with its versions 1 to live, and one more that has failed."""
        last = (live or 0) + 1
        row: dict[str, Any] = {
            "user_id": {"S": user_id},
            "model_row": {"S": model_id},
            "last_version": {"N": str(last)},
            "updated_at": {"S": "2026-01-01T00:00:00.000Z"},
        }
        if live:
            row["live_version"] = {"N": str(live)}
            row["target_model"] = {"S": keys.target_model(user_id, model_id, live)}
        self._put_model_row(row)
        for version in range(1, last + 1):
            self._put_model_row(
                {
                    "user_id": {"S": user_id},
                    "model_row": {"S": keys.version_row(model_id, version)},
                    "version": {"N": str(version)},
                    "status": {"S": "FAILED" if version == last else "READY"},
                    "request_id": {"S": "r1"},
                }
            )

    def _put_model_row(self, row: dict[str, Any]) -> None:
        self.clients.dynamodb.put_item(TableName=self.deployment.models_table, Item=row)


@contextmanager
def world() -> Iterator[World]:
    with mock_aws():
        clients = Clients.of(session())
        clock = FakeClock()
        yield World(Limner(clients, _deploy(clients), clock=clock.clock()), clock)


def _deploy(clients: Clients) -> Deployment:
    clients.s3.create_bucket(Bucket="limner-test")
    clients.dynamodb.create_table(
        TableName="models",
        AttributeDefinitions=_strings("user_id", "model_row"),
        KeySchema=_key("user_id", "model_row"),
        BillingMode="PAY_PER_REQUEST",
    )
    clients.dynamodb.create_table(
        TableName="requests",
        AttributeDefinitions=_strings("request_id", "user_id", "created_at"),
        KeySchema=_key("request_id"),
        GlobalSecondaryIndexes=[
            {
                "IndexName": "by_user",
                "KeySchema": _key("user_id", "created_at"),
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    machine = clients.stepfunctions.create_state_machine(
        name="onboard",
        definition=json.dumps(MACHINE),
        roleArn="arn:aws:iam::123456789012:role/onboard",
    )
    return Deployment(
        bucket="limner-test",
        models_table="models",
        requests_table="requests",
        onboard_machine_arn=machine["stateMachineArn"],
        endpoint_name="limner-test",
        base_id="tiny-1",
    )


def _strings(*names: str) -> list[Any]:
    return [{"AttributeName": name, "AttributeType": "S"} for name in names]


def _key(*names: str) -> list[Any]:
    return [
        {"AttributeName": name, "KeyType": kind}
        for name, kind in zip(names, ("HASH", "RANGE"), strict=False)
    ]
