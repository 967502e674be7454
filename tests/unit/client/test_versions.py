"""Versions: which there are, which one serves, and who may change that at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from limner.contracts import keys
from limner.contracts.errors import LimnerError
from tests.unit.client.world import World


@pytest.fixture
def alice(aws: World) -> World:
    """Three READY versions, of which the third serves, and a fourth that has failed."""
    aws.put_model("alice", live=3)
    aws.put_model("alice", "default2", live=1)
    return aws


def live(aws: World, model_id: str = "default") -> int | None:
    return aws.limner.status("alice", model_id).live_version


def before_flip(aws: World, then: Callable[[], object]) -> None:
    """Does something right before the next flip, once."""
    events = aws.clients.dynamodb.meta.events
    name = "provide-client-params.dynamodb.TransactWriteItems"

    def strike(**_: object) -> None:
        events.unregister(name, strike)
        then()

    events.register(name, strike)


def machine_activates(aws: World, version: int) -> None:
    """What ``ActivateModel`` does to the model's row."""
    aws.clients.dynamodb.update_item(
        TableName="models",
        Key={"user_id": {"S": "alice"}, "model_row": {"S": "default"}},
        UpdateExpression="SET live_version = :v, target_model = :t",
        ExpressionAttributeValues={
            ":v": {"N": str(version)},
            ":t": {"S": keys.target_model("alice", "default", version)},
        },
    )


def test_versions_are_listed_newest_first_and_of_this_model_alone(alice: World) -> None:
    alice.put_model("alice", live=11)
    found = alice.limner.versions("alice")
    assert [version.version for version in found.versions] == list(range(12, 0, -1))
    assert found.versions[0].status == "FAILED"
    assert (found.model.live_version, found.previous) == (11, 10)


def test_an_older_version_is_activated(alice: World) -> None:
    model = alice.limner.activate("alice", "default", 1)
    assert (model.live_version, model.target_model) == (1, "alice/default/v1.tar.gz")
    assert model.last_version == 4, "the next one is trained under a number of its own"
    assert live(alice, "default2") == 1


def test_a_newer_version_is_activated_after_a_roll_back(alice: World) -> None:
    assert alice.limner.roll_back("alice").live_version == 2
    assert alice.limner.activate("alice", "default", 3).live_version == 3


def test_what_serves_already_is_not_written(alice: World) -> None:
    before = alice.limner.activate("alice", "default", 1)
    assert alice.limner.activate("alice", "default", 1) == before


def test_a_roll_back_leads_to_what_served_before(alice: World) -> None:
    """1, 2, 3, a roll-back to 1, then 4: whoever leaves 4 wants 1, and not 3 again."""
    alice.limner.activate("alice", "default", 1)
    alice.put_model("alice", live=4)  # as a whole, with its old times
    assert alice.limner.versions("alice").previous == 3
    alice.limner.activate("alice", "default", 1)
    alice.limner.activate("alice", "default", 4)
    assert alice.limner.roll_back("alice").live_version == 1
    with pytest.raises(LimnerError) as caught:
        alice.limner.roll_back("alice")
    assert caught.value.code == "VERSION_NOT_FOUND"
    assert live(alice) == 1


def test_a_roll_back_can_be_repeated(alice: World) -> None:
    for _ in range(3):
        assert alice.limner.roll_back("alice", from_version=3).live_version == 2


@pytest.mark.parametrize(
    ("user_id", "model_id", "version", "code"),
    [
        ("bob", "default", 1, "MODEL_NOT_FOUND"),
        ("alice", "cat", 1, "MODEL_NOT_FOUND"),
        ("alice", "default", 9, "VERSION_NOT_FOUND"),
        ("alice", "default", 4, "MODEL_NOT_READY"),
        ("alice", "default", 0, "INVALID_INPUT"),
        ("alice", "default#v1", 1, "INVALID_INPUT"),
        ("../alice", "default", 1, "INVALID_INPUT"),
    ],
)
def test_what_cannot_serve_is_refused(
    alice: World, user_id: str, model_id: str, version: int, code: str
) -> None:
    with pytest.raises(LimnerError) as caught:
        alice.limner.activate(user_id, model_id, version)
    assert caught.value.code == code
    assert live(alice) == 3


def test_of_a_model_without_versions_there_is_nothing_to_list(aws: World) -> None:
    with pytest.raises(LimnerError) as caught:
        aws.limner.versions("alice")
    assert caught.value.code == "MODEL_NOT_FOUND"


def test_a_version_that_goes_live_meanwhile_is_not_written_over(alice: World) -> None:
    before_flip(alice, lambda: machine_activates(alice, 5))
    with pytest.raises(LimnerError) as caught:
        alice.limner.roll_back("alice")
    assert caught.value.code == "MODEL_CHANGED"
    assert "version 5 serves now" in caught.value.message
    assert live(alice) == 5


def test_somebody_else_may_want_the_same(alice: World) -> None:
    before_flip(alice, lambda: machine_activates(alice, 1))
    assert alice.limner.activate("alice", "default", 1).live_version == 1


def test_a_version_that_is_deleted_meanwhile_never_goes_live(alice: World) -> None:
    row = {"user_id": {"S": "alice"}, "model_row": {"S": "default#v1"}}
    before_flip(alice, lambda: alice.clients.dynamodb.delete_item(TableName="models", Key=row))
    with pytest.raises(LimnerError) as caught:
        alice.limner.activate("alice", "default", 1)
    assert caught.value.code == "VERSION_NOT_FOUND"
    assert live(alice) == 3


def test_who_trains_a_new_version_keeps_the_model(alice: World) -> None:
    alice.clients.dynamodb.update_item(
        TableName="models",
        Key={"user_id": {"S": "alice"}, "model_row": {"S": "default"}},
        UpdateExpression="SET active_request = :r ADD last_version :one",
        ExpressionAttributeValues={":r": {"S": "r7"}, ":one": {"N": "1"}},
    )
    model = alice.limner.roll_back("alice")
    assert (model.live_version, model.active_request, model.last_version) == (2, "r7", 5)


def lose_reply(aws: World, error: Callable[[], Exception] | None) -> None:
    """The next flip is written and its reply is lost; the SDK repeats it, or raises ``error``."""
    events = aws.clients.dynamodb.meta.events
    name = "provide-client-params.dynamodb.TransactWriteItems"

    def write_first(params: dict[str, Any], **_: object) -> None:
        events.unregister(name, write_first)
        aws.clients.dynamodb.transact_write_items(TransactItems=params["TransactItems"])
        if error is not None:
            raise error()

    events.register(name, write_first)


def test_a_flip_whose_reply_was_lost_is_recognised(alice: World) -> None:
    lose_reply(alice, None)
    assert alice.limner.activate("alice", "default", 2).live_version == 2


def test_a_flip_that_the_app_repeats_goes_no_further(alice: World) -> None:
    lose_reply(alice, lambda: ReadTimeoutError(endpoint_url="https://dynamodb"))
    with pytest.raises(LimnerError) as caught:
        alice.limner.roll_back("alice", from_version=3)
    assert caught.value.code == "AWS_ERROR"
    assert alice.limner.roll_back("alice", from_version=3).live_version == 2


@pytest.mark.parametrize(
    ("reason", "code"),
    [("TransactionConflict", "MODEL_CHANGED"), ("ThrottlingError", "AWS_ERROR")],
)
def test_other_reasons_of_a_cancelled_transaction(alice: World, reason: str, code: str) -> None:
    def cancel() -> None:
        answer: Any = {
            "Error": {"Code": "TransactionCanceledException", "Message": f"[{reason}, None]"},
            "CancellationReasons": [{"Code": reason}, {"Code": "None"}],
        }
        raise ClientError(answer, "TransactWriteItems")

    before_flip(alice, cancel)
    with pytest.raises(LimnerError) as caught:
        alice.limner.activate("alice", "default", 2)
    assert caught.value.code == code
    assert live(alice) == 3


def test_generate_asks_for_what_serves_now(alice: World) -> None:
    asked: list[str] = []

    def note(params: dict[str, Any], **_: object) -> None:
        asked.append(params["TargetModel"])
        raise LimnerError("GENERATION_FAILED")

    alice.clients.runtime.meta.events.register(
        "provide-client-params.sagemaker-runtime.InvokeEndpoint", note
    )
    for change in (lambda: None, lambda: alice.limner.roll_back("alice")):
        change()
        with pytest.raises(LimnerError):
            alice.limner.generate("alice", "x")
    assert asked == ["alice/default/v3.tar.gz", "alice/default/v2.tar.gz"]
