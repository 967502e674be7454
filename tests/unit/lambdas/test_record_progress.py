"""The function record_progress against a table with real conditions."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import boto3
import pytest

from limner.contracts.errors import LimnerError

ME, OTHER = "arn:execution:me", "arn:execution:other"


@pytest.fixture
def handler(tables: None, cold_start: Callable[[str], ModuleType]) -> ModuleType:
    return cold_start("record_progress")


def put(request_id: str, owner: str = ME, status: str = "TRAINING") -> None:
    values = {"request_id": request_id, "owner": owner, "status": status}
    boto3.client("dynamodb").put_item(
        TableName="requests", Item={name: {"S": value} for name, value in values.items()}
    )


def get(request_id: str) -> dict[str, Any]:
    return (
        boto3.resource("dynamodb")
        .Table("requests")
        .get_item(Key={"request_id": request_id})[  # type: ignore[return-value]
            "Item"
        ]
    )


def event(status: str, *request_ids: str) -> dict[str, Any]:
    items = [
        {"request_id": request_id, "outcome": "planned", "version": {"number": 3}}
        for request_id in request_ids
    ]
    items.append({"request_id": "gone", "outcome": "ended", "version": {}})
    return {"owner": ME, "status": status, "job_name": "limner-batch-b1-1", "items": items}


def test_all_requests_name_their_job(handler: ModuleType) -> None:
    put("r0")
    put("r1", status="WAITING_FOR_CAPACITY")
    assert handler.handle(event("TRAINING", "r0", "r1"), None) == {"written": 2, "lost": 0}
    for request_id in ("r0", "r1"):
        row = get(request_id)
        assert (row["status"], row["job_name"]) == ("TRAINING", "limner-batch-b1-1")
        assert row["version"] == 3
        assert row["updated_at"].endswith("Z")


def test_waiting_and_back_and_twice(handler: ModuleType) -> None:
    put("r0")
    for status in ("WAITING_FOR_CAPACITY", "WAITING_FOR_CAPACITY", "TRAINING", "TRAINING"):
        assert handler.handle(event(status, "r0"), None)["written"] == 1
        assert get("r0")["status"] == status


@pytest.mark.parametrize(("owner", "status"), [(OTHER, "TRAINING"), (ME, "CANCELLED")])
def test_a_request_of_somebody_else_stays_as_it_is(
    handler: ModuleType, owner: str, status: str
) -> None:
    put("r0", owner, status)
    put("r1")
    answer = handler.handle(event("WAITING_FOR_CAPACITY", "r0", "r1"), None)
    assert answer == {"written": 1, "lost": 1}
    assert get("r0")["status"] == status


def test_a_batch_brings_its_requests_to_no_other_status(handler: ModuleType) -> None:
    with pytest.raises(LimnerError, match="INTERNAL"):
        handler.handle(event("READY", "r0"), None)
