"""What no machine and no rule would end any more, on the deployed stage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from limner.contracts import keys
from limner.contracts.onboarding import OnboardingFailed, OnboardingInput
from limner.contracts.times import as_text
from tests.support.laptop import until
from tests.support.onboarding import Stack
from tests.workflows.test_dispatch import DEADLINE_S, await_ends, holders, invoke, queued


def age(stack: Stack, wish: OnboardingInput, hours: float, **changes: Any) -> None:
    """Makes a request look as if nothing had happened to it for hours."""
    moment = as_text(datetime.now(UTC) - timedelta(hours=hours))
    changes = {"updated_at": moment, **changes}
    stack.table("RequestsTableName").update_item(
        Key={"request_id": wish.request_id},
        UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in changes),
        ExpressionAttributeNames={f"#{name}": name for name in changes},
        ExpressionAttributeValues={f":{name}": value for name, value in changes.items()},
    )


def reconcile(stack: Stack) -> dict[str, Any]:
    return invoke(stack, "ReconcileFunctionName", {"detail-type": "Scheduled Event"})


def test_a_request_whose_execution_is_gone_ends_and_frees_its_model(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish)
    machine = stack.outputs["OnboardMachineArn"]
    owner = machine.replace(":stateMachine:", ":execution:") + ":nobody-1"
    age(stack, wish, 1, status="TRAINING", owner=owner)
    stack.table("ModelsTableName").put_item(
        Item={"user_id": wish.user_id, "model_row": "default", "active_request": wish.request_id}
    )
    for _ in range(2):
        reconcile(stack)
    row = stack.request(wish)
    assert (row["status"], row["error"]["code"]) == ("FAILED", "DEADLINE_EXCEEDED")
    assert {"open", "queue", "unannounced"}.isdisjoint(row)
    assert "active_request" not in (stack.model(wish) or {})
    (heard,) = stack.notifications(wish)
    assert OnboardingFailed.model_validate(heard).code == "DEADLINE_EXCEEDED"


def test_photos_that_never_came(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish)
    age(stack, wish, 30, status="REGISTERED")
    for _ in range(2):
        reconcile(stack)
    assert stack.request(wish)["error"]["code"] == "UPLOAD_EXPIRED"


def test_a_request_that_nobody_started_is_onboarded_after_all(stack: Stack) -> None:
    wish = stack.wish()
    stack.put_request(wish)
    age(stack, wish, 1)
    for _ in range(2):
        reconcile(stack)
    (row,) = await_ends(stack, [wish])
    assert row["status"] == "READY"


def test_a_batch_that_was_stopped_gives_its_requests_back(stack: Stack) -> None:
    """The rule on its end does it at once, and the stream starts them again."""
    wishes = [stack.wish() for _ in range(2)]
    for wish in wishes:
        stack.put_request(wish, seconds=4)
    execution = stack.start_batch(stack.batch(*wishes))
    until(
        lambda: [stack.request(wish) for wish in wishes],
        lambda rows: all("job_name" in row for row in rows),
        DEADLINE_S,
    )
    stack.laptop.states.stop_execution(executionArn=execution, error="Test", cause="Stopped.")
    rows = await_ends(stack, wishes)
    assert [(row["status"], row["attempt"]) for row in rows] == [("READY", 2)] * 2, rows


def test_a_place_of_the_gate_is_freed_when_the_event_was_lost(stack: Stack) -> None:
    (wish,) = queued(stack, 1)
    (row,) = await_ends(stack, [wish])
    name = row["owner"].rpartition(":")[2]
    until(lambda: holders(stack), lambda inside: name not in inside, DEADLINE_S)
    table = stack.table("RequestsTableName")
    # As if the end of the execution had never been told.
    table.update_item(
        Key={"request_id": keys.GATE_ROW},
        UpdateExpression="SET holders.#name = :held ADD fence :one",
        ExpressionAttributeNames={"#name": name},
        ExpressionAttributeValues={
            ":one": 1,
            ":held": {
                "users": [wish.user_id],
                "models": ["default"],
                "runs": [keys.execution_name(wish.request_id)],
                "instances": 1,
                "until": 4_000_000_000,
                "since": 0,
                "batch": False,
            },
        },
    )
    assert reconcile(stack)["places_freed"] >= 0
    gate = table.get_item(Key={"request_id": keys.GATE_ROW})["Item"]
    assert name not in gate["holders"]
