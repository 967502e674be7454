"""The compiled expressions against moto's own parser, on every expression that Limner sends."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from tests.support.faults import expressions
from tests.support.faults.dynamo import Memory
from tests.support.faults.expressions import InvalidExpressionError
from tests.support.faults.sites import machine_sites, table_writes
from tests.support.faults.writers import Playground, StateWriter, Wish, random_steps, state_data

SAMPLES = 12
OTHERS: list[Mapping[str, Any]] = [
    {"S": "QUEUED"},
    {"S": "TRAINING"},
    {"S": "somebody else"},
    # Not 0 or 1: moto takes them for booleans.
    {"N": "5"},
    {"N": "7"},
    {"BOOL": True},
]


def calls_of_machines() -> list[dict[str, Any]]:
    wish, found = Wish("r1", "u1"), []
    for site in machine_sites():
        if not table_writes(site):
            continue
        built = StateWriter(site).build(state_data(wish, 1, 1), wish.owners[0], "2026-01-01")
        members = built.get("TransactItems")
        found += [next(iter(m.values())) for m in members] if members else [built]
    return found


def calls_of_code() -> list[dict[str, Any]]:
    """The updates that the code has sent on a long walk, one of each form."""
    memory, forms = Memory(), {}
    prepare = memory._prepare

    def noting(kind: str, call: Mapping[str, Any]) -> Any:
        if kind == "Update" and "UpdateExpression" in call and "ConditionExpression" in call:
            forms[call["UpdateExpression"], call["ConditionExpression"]] = dict(call)
        return prepare(kind, call)

    memory._prepare = noting  # type: ignore[method-assign]
    for _ in random_steps(Playground(memory, random.Random(1)), 4_000):
        pass
    return list(forms.values())


def random_item(call: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """An item with some of the attributes that the call names, with values that it may meet."""
    values = [*call.get("ExpressionAttributeValues", {}).values(), *OTHERS]
    names = call.get("ExpressionAttributeNames", {}).values()
    some = {name: dict(rng.choice(values)) for name in names if rng.random() < 0.7}
    for name in ("attempt", "lease_fence", "last_version"):
        if name in some:
            some[name] = {"N": str(rng.randrange(2, 5))}
    if "BOOL" in some.get("live_version", {}):
        some["live_version"] = {"N": "1"}  # moto takes true for 1, as DynamoDB does not
    return {**some, **call["Key"]}


@pytest.fixture(scope="module")
def moto_dynamodb() -> Any:
    with mock_aws():
        client = boto3.client(
            "dynamodb",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        for table, schema in Memory().schemas.items():
            client.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[
                    {"AttributeName": name, "AttributeType": "S"} for name in schema.key
                ],
                KeySchema=[
                    {"AttributeName": name, "KeyType": kind}
                    for name, kind in zip(schema.key, ("HASH", "RANGE"), strict=False)
                ],
            )
        yield client


def outcome(client: Any, call: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
    """What a call leaves of an item, or that its condition fails."""
    client.put_item(TableName=call["TableName"], Item=dict(item))
    try:
        client.update_item(**call)
    except ClientError as error:
        return error.response["Error"]["Code"]
    answer = client.get_item(TableName=call["TableName"], Key=call["Key"], ConsistentRead=True)
    return json.dumps(answer["Item"], sort_keys=True)


def test_every_expression_of_limner_means_the_same_to_moto(moto_dynamodb: Any) -> None:
    rng = random.Random(7)
    outcomes: set[str] = set()
    calls = calls_of_machines() + calls_of_code()
    assert len(calls) > 20
    for call in calls:
        for _ in range(SAMPLES):
            item = random_item(call, rng)
            ours = outcome(Memory(), call, item)
            assert ours == outcome(moto_dynamodb, call, item), (call, item)
            outcomes.add(ours if ours.endswith("Exception") else "written")
    assert {"written", "ConditionalCheckFailedException"} <= outcomes


@pytest.mark.parametrize(
    ("text", "item", "holds"),
    [
        ("a = :x", {"a": {"N": "1.0"}}, True),
        ("a <> :x", {}, True),
        ("a > :x", {}, False),
        ("a BETWEEN :x AND :y", {"a": {"N": "2"}}, True),
        ("NOT a = :x", {"a": {"N": "2"}}, True),
        ("a = :x OR b = :x AND c = :x", {"a": {"N": "1"}}, True),
        ("(a = :x OR b = :x) AND c = :x", {"a": {"N": "1"}}, False),
        ("a.b[1] = :x", {"a": {"M": {"b": {"L": [{"N": "7"}, {"N": "1"}]}}}}, True),
        ("attribute_exists(a.b)", {"a": {"M": {}}}, False),
        ("begins_with(a, :s)", {"a": {"S": "text"}}, True),
        ("contains(a, :s)", {"a": {"SS": ["te", "x"]}}, True),
        ("size(a) = :y", {"a": {"S": "abc"}}, True),
        ("a IN (:y, :x)", {"a": {"N": "1"}}, True),
    ],
)
def test_conditions(text: str, item: dict[str, Any], holds: bool) -> None:
    values = {":x": {"N": "1"}, ":y": {"N": "3"}, ":s": {"S": "te"}}
    assert expressions.condition(text)(item, {}, values) is holds


def test_updates_leave_the_old_item_alone() -> None:
    old = {"a": {"M": {"b": {"N": "1"}}}, "s": {"SS": ["x", "y"]}, "n": {"N": "1"}}
    before = json.dumps(old)
    new = expressions.update(
        "SET a.b = a.b + :one, c = if_not_exists(c, :one) REMOVE n ADD m :one DELETE s :x"
    )(old, {}, {":one": {"N": "1"}, ":x": {"SS": ["x"]}})
    assert json.dumps(old) == before
    assert new == {
        "a": {"M": {"b": {"N": "2"}}},
        "s": {"SS": ["y"]},
        "c": {"N": "1"},
        "m": {"N": "1"},
    }


@pytest.mark.parametrize("text", ["a =", "a == :x", "a = :x)", "(a = :x", "nonsense(a)"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(InvalidExpressionError):
        expressions.condition(text)
