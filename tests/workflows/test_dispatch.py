"""The queue on the deployed stage: stream, schedule and events wake it, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

from limner.contracts import keys
from limner.contracts.onboarding import REQUESTED_EVENT, OnboardingInput
from limner.contracts.times import utc_now
from tests.support.laptop import until
from tests.support.onboarding import Stack

# Launches keep their real rate of one a second, whatever the clock says.
DEADLINE_S = 120


def enqueue(stack: Stack, wish: OnboardingInput) -> None:
    """Puts a request, which lies there, into the queue."""
    stack.table("RequestsTableName").update_item(
        Key={"request_id": wish.request_id},
        UpdateExpression="SET #queue = :shard, queued_at = :now REMOVE lease_until",
        ExpressionAttributeNames={"#queue": "queue"},
        ExpressionAttributeValues={":shard": keys.shard_of(wish.user_id), ":now": utc_now()},
    )


def queued(stack: Stack, count: int, **behaviour: Any) -> list[OnboardingInput]:
    """Requests of fresh users, put into the queue one after the other."""
    wishes = [stack.wish() for _ in range(count)]
    for wish in wishes:
        stack.put_request(wish, **behaviour)
    for wish in wishes:
        enqueue(stack, wish)
    return wishes


def await_ends(stack: Stack, wishes: list[OnboardingInput]) -> list[dict[str, Any]]:
    """The rows when all have ended and were told: a READY one stays open until then."""
    return until(
        lambda: [stack.request(wish) for wish in wishes],
        lambda rows: all(
            row["status"] in ("READY", "FAILED", "CANCELLED") and "open" not in row for row in rows
        ),
        DEADLINE_S,
    )


def holders(stack: Stack) -> set[str]:
    found = stack.table("RequestsTableName").get_item(Key={"request_id": keys.GATE_ROW})
    return set(found.get("Item", {}).get("holders", {}))


def invoke(stack: Stack, output: str, event: dict[str, Any]) -> dict[str, Any]:
    answer = stack.laptop.client("lambda").invoke(
        FunctionName=stack.outputs[output], Payload=json.dumps(event).encode()
    )
    body: dict[str, Any] = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, body
    return body


def test_the_stream_starts_a_request_by_itself(stack: Stack) -> None:
    (wish,) = queued(stack, 1)
    (row,) = await_ends(stack, [wish])
    assert (row["status"], row["attempt"]) == ("READY", 1), row
    assert {"queue", "lease_until"}.isdisjoint(row)
    # The end of the execution has freed its place.
    name = row["owner"].rpartition(":")[2]
    until(lambda: holders(stack), lambda inside: name not in inside, DEADLINE_S)


def test_a_burst_loses_nobody(stack: Stack) -> None:
    """Twelve requests: how many of them share an execution is the moment's choice."""
    wishes = queued(stack, 12)
    rows = await_ends(stack, wishes)
    assert [row["status"] for row in rows] == ["READY"] * 12, rows
    assert {row["attempt"] for row in rows} == {1}
    for wish in wishes:
        (heard,) = stack.notifications(wish)
        assert heard["type"] == "limner.onboarding.ready"
    names = {row["owner"].rpartition(":")[2] for row in rows}
    until(lambda: holders(stack), lambda inside: not names & inside, DEADLINE_S)


def test_one_user_has_one_request_at_work(stack: Stack) -> None:
    first = stack.wish()
    second = stack.wish(user_id=first.user_id, retrain=True)
    for wish in (first, second):
        stack.put_request(wish)
        enqueue(stack, wish)
    rows = await_ends(stack, [first, second])
    assert [(row["status"], row["version"]) for row in rows] == [("READY", 1), ("READY", 2)]


def test_an_event_on_the_bus_is_an_onboarding(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish)
    answer = stack.laptop.client("events").put_events(
        Entries=[
            {
                "EventBusName": stack.outputs["BusName"],
                "Source": "limner",
                "DetailType": REQUESTED_EVENT,
                "Detail": wish.model_dump_json(),
            }
        ]
    )
    assert answer["FailedEntryCount"] == 0
    (row,) = await_ends(stack, [wish])
    assert row["status"] == "READY"


def test_the_schedule_looks_at_the_queue(stack: Stack) -> None:
    (wish,) = queued(stack, 1)
    body = invoke(stack, "DispatchFunctionName", {"detail-type": "Scheduled Event", "detail": {}})
    assert body["batchItemFailures"] == []
    assert stack.laptop.control.fire_rule("DispatchSchedule")
    (row,) = await_ends(stack, [wish])
    assert row["status"] == "READY"


def test_a_bad_row_ends_and_the_others_go_on(stack: Stack) -> None:
    bad = stack.wish()
    stack.put_request(bad)
    stack.table("RequestsTableName").update_item(
        Key={"request_id": bad.request_id},
        UpdateExpression="SET model_id = :bad",
        ExpressionAttributeValues={":bad": "no model's name!"},
    )
    enqueue(stack, bad)
    (good,) = queued(stack, 1)
    row, other = await_ends(stack, [bad, good])
    assert (row["status"], row["error"]["code"]) == ("FAILED", "INVALID_INPUT")
    assert other["status"] == "READY"
