"""The function record_failure against tables with real conditions."""

import io
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from lambdas.record_failure.logic import NotOursError
from lambdas.shared.dynamo import Plain, to_attribute, to_plain
from lambdas.shared.log import JsonLines
from limner.contracts.errors import LimnerError
from limner.contracts.onboarding import OnboardingInput

ME, OTHER = "arn:execution:me", "arn:execution:other"
BUSY_MODEL = {"last_version": 2, "live_version": 1, "active_request": "r1"}


class World:
    """The tables, the function, and what it publishes."""

    def __init__(self, handler: ModuleType) -> None:
        self.handler = handler
        self.dynamodb = boto3.client("dynamodb")
        self.published: list[dict[str, Any]] = []
        self.sns_works = True
        handler._SNS.publish = self._publish  # type: ignore[attr-defined]

    def _publish(self, **call: Any) -> None:
        if not self.sns_works:
            raise ConnectionError("SNS is away")
        assert call["TopicArn"].endswith(":topic")
        self.published.append(json.loads(call["Message"]))

    def put(self, table: str, **item: Plain) -> None:
        attributes = {name: to_attribute(value) for name, value in item.items()}
        self.dynamodb.put_item(TableName=table, Item=attributes)

    def get(self, table: str, **key: Plain) -> dict[str, Any]:
        attributes = {name: to_attribute(value) for name, value in key.items()}
        item = self.dynamodb.get_item(TableName=table, Key=attributes)["Item"]
        return {name: to_plain(value) for name, value in item.items()}

    def request(self, **fields: Plain) -> None:
        self.put(
            "requests",
            **{
                "request_id": "r1",
                "user_id": "ada",
                "model_id": "default",
                "status": "TRAINING",
                **fields,
            },
        )

    def model(self, **fields: Plain) -> None:
        self.put("models", user_id="ada", model_row="default", **fields)

    def fails(self, error: str = "States.Timeout", cause: str = "") -> dict[str, Any]:
        """The machine's own entrance."""
        event = {
            "request_id": "r1",
            "owner": ME,
            "failure": {"Error": error, "Cause": cause},
        }
        answer: dict[str, Any] = self.handler.handle(event, None)
        return answer

    def announced(self) -> None:
        """The machine's RecordAnnouncement."""
        self.dynamodb.update_item(
            TableName="requests",
            Key={"request_id": {"S": "r1"}},
            UpdateExpression="REMOVE unannounced",
        )

    def ends(
        self, status: str = "ABORTED", error: str | None = None, **told: Any
    ) -> dict[str, Any] | None:
        """The rule's entrance; ``told`` changes the execution's input, None takes a field out."""
        whole = OnboardingInput(request_id="r1", user_id="ada").model_dump() | told
        detail = {
            "executionArn": ME,
            "status": status,
            "input": json.dumps({name: v for name, v in whole.items() if v is not None}),
            "error": error,
            "cause": None,
        }
        event = {"detail-type": "Step Functions Execution Status Change", "detail": detail}
        answer: dict[str, Any] | None = self.handler.handle(event, None)
        return answer


@pytest.fixture
def world(tables: None, cold_start: Callable[[str], ModuleType]) -> World:
    return World(cold_start("record_failure"))


def test_a_failure_ends_the_request_and_frees_the_model(world: World) -> None:
    world.request(owner=ME, version=2)
    world.model(**BUSY_MODEL)
    world.put("models", user_id="ada", model_row="default#v2", status="TRAINED", request_id="r1")
    body = world.fails()
    assert (body["type"], body["code"]) == ("limner.onboarding.failed", "DEADLINE_EXCEEDED")
    request = world.get("requests", request_id="r1")
    assert request["status"] == "FAILED"
    assert request["error"]["retryable"] is True
    assert request["updated_at"].endswith("Z")
    model = world.get("models", user_id="ada", model_row="default")
    assert "active_request" not in model
    assert model["live_version"] == 1
    assert world.get("models", user_id="ada", model_row="default#v2")["status"] == "FAILED"
    assert world.published == []  # the machine publishes it


def test_a_request_of_a_batch_that_was_cancelled_meanwhile_is_no_failure(world: World) -> None:
    world.request(owner=ME, version=2, cancel_requested=True)
    world.model(**BUSY_MODEL)
    body = world.fails("DynamoDb.TransactionCanceledException", "[None, ConditionalCheckFailed]")
    assert body["code"] == "EXECUTION_STOPPED"
    request = world.get("requests", request_id="r1")
    assert (request["status"], request["error"]["code"]) == ("CANCELLED", "EXECUTION_STOPPED")
    assert "active_request" not in world.get("models", user_id="ada", model_row="default")


def test_a_cancelled_request_that_was_refused_the_claim_is_cancelled(world: World) -> None:
    world.request(status="QUEUED", cancel_requested=True)
    world.ends("FAILED", "REQUEST_ALREADY_CLAIMED")
    request = world.get("requests", request_id="r1")
    assert (request["status"], request["error"]["code"]) == ("CANCELLED", "EXECUTION_STOPPED")
    assert len(world.published) == 1


@pytest.mark.parametrize(
    "told",
    [
        *({"user_id": None}, {"model_id": None}, {"attempt": None}, {"retrain": None}),
        *({"user_id": "eve"}, {"model_id": "other"}),
    ],
)
def test_an_event_that_is_not_the_request_s_own_ends_no_healthy_one(
    world: World, told: dict[str, Any]
) -> None:
    world.request(status="QUEUED")
    assert world.ends("FAILED", "States.Runtime", **told) is None
    assert world.get("requests", request_id="r1")["status"] == "QUEUED"
    assert world.ends("FAILED", "States.Runtime") is not None
    assert world.get("requests", request_id="r1")["status"] == "FAILED"


def test_the_second_time_changes_nothing_and_says_the_same(world: World) -> None:
    world.request(owner=ME)
    world.model(**BUSY_MODEL)
    first = world.fails("MODEL_BUSY", "Busy.")
    recorded = world.get("requests", request_id="r1")
    assert world.fails("States.Timeout") == first
    assert world.get("requests", request_id="r1") == recorded


def test_a_crash_between_the_writes_is_mended_by_the_repetition(world: World) -> None:
    error = {"code": "INTERNAL", "message": "x", "retryable": False, "fix": "y"}
    world.request(owner=ME, status="FAILED", error=error)
    world.model(**BUSY_MODEL)
    world.fails()
    assert "active_request" not in world.get("models", user_id="ada", model_row="default")


def test_a_request_that_failed_before_its_claim_is_ended_too(world: World) -> None:
    world.request(status="QUEUED")
    world.fails("DynamoDB.AmazonDynamoDBException", "AccessDenied")
    request = world.get("requests", request_id="r1")
    assert (request["status"], request["owner"]) == ("FAILED", ME)


@pytest.mark.parametrize(
    "fields",
    [
        {"owner": OTHER, "status": "TRAINING"},
        {"owner": ME, "status": "READY"},
        {"owner": OTHER, "status": "FAILED"},
        {"status": "CANCELLED"},
    ],
)
def test_what_is_not_ours_stays_untouched(world: World, fields: dict[str, str]) -> None:
    world.request(**fields)
    world.model(**BUSY_MODEL)
    before = world.get("requests", request_id="r1")
    with pytest.raises(NotOursError, match="REQUEST_ALREADY_CLAIMED"):
        world.fails()
    assert world.ends() is None
    assert world.get("requests", request_id="r1") == before
    assert world.get("models", user_id="ada", model_row="default")["active_request"] == "r1"
    assert world.published == []


def test_a_request_that_does_not_exist(world: World) -> None:
    with pytest.raises(NotOursError):
        world.fails()


def test_a_model_that_another_request_holds_stays_busy(world: World) -> None:
    world.request(owner=ME)
    world.model(last_version=2, active_request="r2")
    world.fails("MODEL_BUSY", "Busy.")
    assert world.get("models", user_id="ada", model_row="default")["active_request"] == "r2"


def test_a_version_that_is_live_does_not_fail_with_a_later_request(world: World) -> None:
    world.request(owner=ME, version=1)
    world.put("models", user_id="ada", model_row="default#v1", status="READY", request_id="r0")
    world.fails()
    assert world.get("models", user_id="ada", model_row="default#v1")["status"] == "READY"


def test_a_stopped_execution_cancels_its_request_and_says_so_once(world: World) -> None:
    world.request(owner=ME)
    world.model(**BUSY_MODEL)
    world.ends("ABORTED")
    world.ends("ABORTED")
    request = world.get("requests", request_id="r1")
    assert (request["status"], request["error"]["code"]) == ("CANCELLED", "EXECUTION_STOPPED")
    assert "active_request" not in world.get("models", user_id="ada", model_row="default")
    assert [body["code"] for body in world.published] == ["EXECUTION_STOPPED"]


def test_an_execution_that_ran_out_of_time(world: World) -> None:
    world.request(owner=ME)
    world.ends("TIMED_OUT")
    request = world.get("requests", request_id="r1")
    assert (request["status"], request["error"]["code"]) == ("FAILED", "DEADLINE_EXCEEDED")


def test_a_failure_that_the_machine_announces_is_not_announced_again(world: World) -> None:
    world.request(owner=ME)
    world.fails()
    world.announced()
    world.ends("FAILED")
    assert world.published == []


def test_a_failure_that_was_recorded_and_never_announced_is_announced_by_the_rule(
    world: World,
) -> None:
    """The execution was stopped between RecordFailure and NotifyFailure."""
    world.request(owner=ME)
    world.fails("MODEL_BUSY", "Busy.")
    assert world.get("requests", request_id="r1")["unannounced"] is True
    world.ends("ABORTED")
    world.ends("ABORTED")
    assert [body["code"] for body in world.published] == ["MODEL_BUSY"]
    request = world.get("requests", request_id="r1")
    assert (request["status"], "unannounced" in request) == ("FAILED", False)


def test_the_end_takes_a_request_out_of_all_indexes(world: World) -> None:
    world.request(owner=ME, open="3", queue="3", lease_until="2026-01-01T00:00:00.000Z", shard="3")
    world.fails()
    request = world.get("requests", request_id="r1")
    assert request["shard"] == "3"
    assert {"open", "queue", "lease_until"}.isdisjoint(request)


def test_the_record_and_the_notification_say_whose_fault_it_was(world: World) -> None:
    world.request(owner=ME)
    body = world.fails("SageMaker.ResourceLimitExceededException", "Full.")
    assert (body["fault"], world.get("requests", request_id="r1")["error"]["fault"]) == (
        "aws",
        "aws",
    )


@pytest.mark.parametrize("status", ["REGISTERED", "QUEUED"])
def test_an_execution_that_was_refused_the_claim_ends_nothing(world: World, status: str) -> None:
    """Started before its photos came, or beside one that has put the request back."""
    world.request(status=status)
    assert world.ends("FAILED", "REQUEST_ALREADY_CLAIMED") is None
    assert world.get("requests", request_id="r1")["status"] == status


def test_an_announcement_that_failed_is_made_up_for(world: World) -> None:
    world.request(owner=ME)
    world.sns_works = False
    with pytest.raises(ConnectionError):
        world.ends("ABORTED")
    world.sns_works = True
    world.ends("ABORTED")
    world.ends("ABORTED")
    assert len(world.published) == 1


def test_a_request_that_changes_hands_meanwhile_is_left_to_the_repetition(world: World) -> None:
    world.request(owner=ME)
    read = world.handler.LEDGER.read

    def read_then_lose(request_id: str) -> Any:
        record = read(request_id)
        world.request(owner=OTHER)
        return record

    world.handler.LEDGER.read = read_then_lose
    with pytest.raises(LimnerError, match="REQUEST_ALREADY_CLAIMED"):
        world.fails()
    assert world.get("requests", request_id="r1")["status"] == "TRAINING"


def test_an_execution_without_a_request_is_passed_over(world: World) -> None:
    event = {"detail-type": "x", "detail": {"executionArn": ME, "status": "FAILED", "input": "{}"}}
    assert world.handler.handle(event, None) is None


def test_errors_of_dynamodb_are_not_swallowed(world: World) -> None:
    with Stubber(world.handler._DYNAMODB) as stub:
        stub.add_client_error("get_item", "ProvisionedThroughputExceededException")
        with pytest.raises(Exception, match="ProvisionedThroughputExceeded"):
            world.fails()


def test_the_log_holds_codes_and_no_text(world: World) -> None:
    world.request(owner=ME)
    (written,) = (h for h in world.handler.LOG.handlers if isinstance(h.formatter, JsonLines))
    stream = io.StringIO()
    before = written.setStream(stream)
    world.fails("X", "the user's own words")
    written.setStream(before)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"level": "INFO", "event": "END_NOW", "request_id": "r1", "code": "INTERNAL"}
    ]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ("PHOTO_TOO_SMALL", "caller"),
        ("SageMaker.ResourceLimitExceededException", "aws"),
        ("KeyError", "limner"),
    ],
)
def test_a_failure_is_counted_once_by_whose_fault_it_is_and_by_no_name(
    world: World, capsys: pytest.CaptureFixture[str], error: str, fault: str
) -> None:
    world.request(owner=ME)
    world.fails(error, "the user's own words")
    world.fails(error, "the user's own words")
    world.ends("FAILED", error)
    (line,) = capsys.readouterr().out.splitlines()
    written = json.loads(line)
    (directive,) = written.pop("_aws")["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["Stage", "Fault"]]
    assert directive["Metrics"] == [{"Name": "FailedRequests", "Unit": "Count"}]
    assert written == {"Stage": "test", "Fault": fault, "FailedRequests": 1}


def test_who_wanted_the_end_has_not_failed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.request(owner=ME, cancel_requested=True)
    world.fails("DynamoDb.TransactionCanceledException", "[None, ConditionalCheckFailed]")
    world.request(owner=ME)
    world.ends("ABORTED")
    assert capsys.readouterr().out == ""
