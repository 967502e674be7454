"""What starts things on the laptop: streams, rules, schedules; and what keeps what failed."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from typing import Any

import pytest

from limner.local.trouble import Fault
from tests.support.laptop import CLOCK_SCALE, ROLE, TestLaptop, until

ARN = "arn:aws:sqs:us-east-1:000000000000:"
# Notes each record that it processes; a record whose value is "poison" is not one of them.
CONSUMER = """
import boto3, os
table = boto3.client('dynamodb')
def handler(event, context):
    failed = []
    for record in event['Records']:
        key = record['dynamodb']['Keys']['pk']['S']
        if key.startswith('poison'):
            if MODE == 'raise':
                raise ValueError('poison')
            failed.append({'itemIdentifier': record['dynamodb']['SequenceNumber']})
            continue
        table.update_item(TableName=SEEN, Key={'pk': {'S': key}},
            UpdateExpression='ADD seen :one', ExpressionAttributeValues={':one': {'N': '1'}})
    return {'batchItemFailures': failed}
"""
LISTENER = """
import boto3, json
def handler(event, context):
    boto3.client('sqs').send_message(QueueUrl=URL, MessageBody=json.dumps(event))
    if FAILS:
        raise ValueError('listener')
"""


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def function(laptop: TestLaptop, code: str, **constants: object) -> str:
    header = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", header + code)
    created = laptop.client("lambda").create_function(
        FunctionName=unique("fn"),
        Runtime="python3.11",
        Role=ROLE,
        Handler="app.handler",
        Code={"ZipFile": buffer.getvalue()},
        Timeout=60,
    )
    return str(created["FunctionArn"])


def table(laptop: TestLaptop, *, stream: bool = False) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if stream:
        options["StreamSpecification"] = {
            "StreamEnabled": True,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        }
    created: dict[str, Any] = laptop.client("dynamodb").create_table(
        TableName=unique("t"),
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        **options,
    )["TableDescription"]
    return created


def queue(laptop: TestLaptop) -> tuple[str, str]:
    """URL and ARN of a new queue."""
    name = unique("q")
    return str(laptop.client("sqs").create_queue(QueueName=name)["QueueUrl"]), ARN + name


class Mailbox:
    """All messages that a queue has given so far."""

    def __init__(self, laptop: TestLaptop, url: str) -> None:
        self._client, self._url = laptop.client("sqs"), url
        self.messages: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        found = self._client.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages", [])
        for message in found:
            self._client.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        self.messages += found
        return self.messages

    def first(self) -> dict[str, Any]:
        """The body of the first message, once it is there."""
        until(self.look, bool)
        body: dict[str, Any] = json.loads(self.messages[0]["Body"])
        return body


# Streams


@pytest.mark.parametrize("mode", ["raise", "report"])
def test_one_poison_in_a_hundred_records(laptop: TestLaptop, mode: str) -> None:
    source, seen = table(laptop, stream=True), table(laptop)
    url, arn = queue(laptop)
    consumer = function(laptop, CONSUMER, MODE=mode, SEEN=seen["TableName"])
    database = laptop.client("dynamodb")
    keys = [f"poison-{i}" if i == 37 else f"fine-{i}" for i in range(100)]
    for start in range(0, 100, 25):
        rows = [{"PutRequest": {"Item": {"pk": {"S": k}}}} for k in keys[start : start + 25]]
        database.batch_write_item(RequestItems={source["TableName"]: rows})
    mapping = laptop.client("lambda").create_event_source_mapping(
        EventSourceArn=source["LatestStreamArn"],
        FunctionName=consumer,
        StartingPosition="TRIM_HORIZON",
        BatchSize=100,
        BisectBatchOnFunctionError=True,
        MaximumRetryAttempts=2,
        FunctionResponseTypes=["ReportBatchItemFailures"] if mode == "report" else [],
        DestinationConfig={"OnFailure": {"Destination": arn}},
    )
    mailbox = Mailbox(laptop, url)
    told = mailbox.first()
    assert told["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert told["requestContext"]["functionArn"] == consumer
    info = told["DDBStreamBatchInfo"]
    assert info["batchSize"] == 1
    assert info["startSequenceNumber"] == info["endSequenceNumber"]
    assert info["streamArn"] == source["LatestStreamArn"]

    # What comes after the poison is not held up by it.
    database.put_item(TableName=source["TableName"], Item={"pk": {"S": "fine-later"}})
    scan = laptop.client("dynamodb").scan
    found = until(
        lambda: {row["pk"]["S"] for row in scan(TableName=seen["TableName"])["Items"]},
        lambda rows: "fine-later" in rows,
    )
    assert found == {key for key in keys if key.startswith("fine")} | {"fine-later"}
    assert len(mailbox.look()) == 1
    laptop.client("lambda").delete_event_source_mapping(UUID=mapping["UUID"])


def test_filters_keep_records_from_the_function(laptop: TestLaptop) -> None:
    source, seen = table(laptop, stream=True), table(laptop)
    consumer = function(laptop, CONSUMER, MODE="report", SEEN=seen["TableName"])
    pattern = {"dynamodb": {"NewImage": {"status": {"S": ["QUEUED"]}}}}
    mapping = laptop.client("lambda").create_event_source_mapping(
        EventSourceArn=source["LatestStreamArn"],
        FunctionName=consumer,
        StartingPosition="LATEST",
        FilterCriteria={"Filters": [{"Pattern": json.dumps(pattern)}]},
    )
    database = laptop.client("dynamodb")
    for key, status in (("a", "TRAINING"), ("b", "QUEUED"), ("c", "READY"), ("d", "QUEUED")):
        item = {"pk": {"S": key}, "status": {"S": status}}
        database.put_item(TableName=source["TableName"], Item=item)
    found = until(
        lambda: {row["pk"]["S"] for row in database.scan(TableName=seen["TableName"])["Items"]},
        lambda rows: "d" in rows,
    )
    assert found == {"b", "d"}
    laptop.client("lambda").delete_event_source_mapping(UUID=mapping["UUID"])


# Rules


def machine(laptop: TestLaptop) -> str:
    definition = {"StartAt": "Pass", "States": {"Pass": {"Type": "Pass", "End": True}}}
    created = laptop.states.create_state_machine(
        name=unique("rule"), definition=json.dumps(definition), roleArn=ROLE
    )
    return str(created["stateMachineArn"])


def rule(laptop: TestLaptop, target: dict[str, Any], bus: str = "default", **how: Any) -> str:
    events, name = laptop.client("events"), unique("rule")
    if not how:
        how = {"EventPattern": json.dumps({"source": [name]})}
    events.put_rule(Name=name, EventBusName=bus, **how)
    events.put_targets(Rule=name, EventBusName=bus, Targets=[{"Id": "t", **target}])
    return name


def put(laptop: TestLaptop, source: str, detail: object, bus: str = "default") -> None:
    entry = {
        "Source": source,
        "DetailType": "limner.onboarding.requested",
        "Detail": json.dumps(detail),
        "EventBusName": bus,
    }
    assert laptop.client("events").put_events(Entries=[entry])["FailedEntryCount"] == 0


def inputs(laptop: TestLaptop, machine_arn: str) -> list[Any]:
    """The inputs of a machine's executions, once there are any."""
    found = until(
        lambda: laptop.states.list_executions(stateMachineArn=machine_arn)["executions"], bool
    )
    return [
        json.loads(laptop.states.describe_execution(executionArn=it["executionArn"])["input"])
        for it in found
    ]


@pytest.mark.parametrize("bus", ["default", "limner-test"])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"InputPath": "$.detail"}, {"request_id": "r1", "n": 1}),
        ({"Input": '{"fixed": true}'}, {"fixed": True}),
        (
            {
                "InputTransformer": {
                    "InputPathsMap": {"id": "$.detail.request_id"},
                    "InputTemplate": '{"request": <id>}',
                }
            },
            {"request": "r1"},
        ),
    ],
)
def test_a_rule_starts_a_machine(
    laptop: TestLaptop, bus: str, shape: dict[str, Any], expected: object
) -> None:
    events = laptop.client("events")
    if bus not in [it["Name"] for it in events.list_event_buses()["EventBuses"]]:
        events.create_event_bus(Name=bus)
    target = machine(laptop)
    source = rule(laptop, {"Arn": target, "RoleArn": ROLE, **shape}, bus)
    put(laptop, source, {"request_id": "r1", "n": 1}, bus)
    assert inputs(laptop, target) == [expected]


def test_an_event_for_a_machine_that_is_gone_is_in_the_dead_letter_queue(
    laptop: TestLaptop,
) -> None:
    url, arn = queue(laptop)
    gone = "arn:aws:states:us-east-1:000000000000:stateMachine:gone"
    target = {"Arn": gone, "RoleArn": ROLE, "DeadLetterConfig": {"Arn": arn}}
    source = rule(laptop, target)
    put(laptop, source, {"request_id": "r1"})
    mailbox = Mailbox(laptop, url)
    assert mailbox.first()["detail"] == {"request_id": "r1"}
    attributes = mailbox.messages[0]["MessageAttributes"]
    said = {name: item["StringValue"] for name, item in attributes.items()}
    assert said["TARGET_ARN"] == gone
    assert said["RULE_ARN"].endswith(source)
    assert said["ERROR_CODE"] == "NO_RESOURCE"
    assert said["RETRY_ATTEMPTS"] == "0"


def test_a_target_that_fails_is_tried_again(laptop: TestLaptop) -> None:
    fault = Fault("states:StartExecution", times=2, code="ThrottlingException")
    laptop.control.trouble(faults=[fault])
    target = machine(laptop)
    source = rule(laptop, {"Arn": target, "RoleArn": ROLE, "InputPath": "$.detail"})
    put(laptop, source, {"request_id": "r1"})
    assert inputs(laptop, target) == [{"request_id": "r1"}]
    assert laptop.control.trouble_left() == {"states:StartExecution": 0}


def test_a_target_that_fails_too_often_is_given_up(laptop: TestLaptop) -> None:
    laptop.control.trouble(faults=[Fault("states:StartExecution", times=None)])
    url, arn = queue(laptop)
    source = rule(
        laptop,
        {
            "Arn": machine(laptop),
            "RoleArn": ROLE,
            "DeadLetterConfig": {"Arn": arn},
            "RetryPolicy": {"MaximumRetryAttempts": 2, "MaximumEventAgeInSeconds": 3600},
        },
    )
    put(laptop, source, {"request_id": "r1"})
    mailbox = Mailbox(laptop, url)
    mailbox.first()
    attributes = mailbox.messages[0]["MessageAttributes"]
    assert attributes["RETRY_ATTEMPTS"]["StringValue"] == "2"
    assert attributes["EXHAUSTED_RETRY_CONDITION"]["StringValue"] == "MaximumRetryAttempts"


def test_a_function_that_fails_is_invoked_three_times_and_then_told_of(
    laptop: TestLaptop,
) -> None:
    """Asynchronous invocations: two retries, then the function's own on-failure destination."""
    (calls_url, _), (failures_url, failures) = queue(laptop), queue(laptop)
    listener = function(laptop, LISTENER, URL=calls_url, FAILS=True)
    laptop.client("lambda").put_function_event_invoke_config(
        FunctionName=listener, DestinationConfig={"OnFailure": {"Destination": failures}}
    )
    source = rule(laptop, {"Arn": listener})
    put(laptop, source, {"request_id": "r1"})
    told = Mailbox(laptop, failures_url).first()
    assert told["requestPayload"]["detail"] == {"request_id": "r1"}
    calls = Mailbox(laptop, calls_url)
    assert len(until(calls.look, lambda found: len(found) >= 3)) == 3


# Schedules


def test_schedules_follow_the_clock_and_can_be_fired(laptop: TestLaptop) -> None:
    laptop.control.clock(0)
    url, _ = queue(laptop)
    listener = function(laptop, LISTENER, URL=url, FAILS=False)
    name = rule(laptop, {"Arn": listener}, ScheduleExpression="rate(1 minute)")
    mailbox = Mailbox(laptop, url)
    assert laptop.control.fire_rule(name[:-1]) == [name]
    event = mailbox.first()
    assert (event["source"], event["detail-type"]) == ("aws.events", "Scheduled Event")
    assert event["resources"][0].endswith(name)
    assert len(mailbox.look()) == 1, "nothing fires by itself while waits are skipped"
    laptop.control.clock(CLOCK_SCALE)
    until(mailbox.look, lambda found: len(found) >= 3)
    laptop.client("events").disable_rule(Name=name)
