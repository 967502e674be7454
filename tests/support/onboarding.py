"""Onboardings on the deployed stack: the published machine, with light images at its two ends.

Everything between is real: the machine, the tables, the functions, the rule on executions that end,
and the topic, whose messages arrive in a queue.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from limner.contracts import keys
from limner.contracts.onboarding import BatchInput, OnboardingInput
from limner.contracts.times import utc_now
from limner.contracts.training import TrainingConfig
from limner.local.deploy import deploy_stack
from limner.registry import Request
from tests.support.laptop import DEADLINE_S, TestLaptop, until

DEPLOY_DEADLINE_S = 150


@dataclass(frozen=True)
class Stack:
    """The deployed stack and a queue on its topic."""

    laptop: TestLaptop
    outputs: dict[str, str]
    queue_url: str
    heard: dict[str, dict[str, Any]] = field(default_factory=dict)
    """All that was ever received, by message id."""

    # -- One onboarding ---------------------------------------------------------------------------

    def wish(self, **changes: Any) -> OnboardingInput:
        """The input of an onboarding of a fresh user."""
        unique = uuid.uuid4().hex[:12]
        values = {"request_id": f"r{unique}", "user_id": f"user-{unique}"}
        return OnboardingInput.model_validate({**values, **changes})

    def put_request(self, wish: OnboardingInput, **behaviour: Any) -> None:
        """Writes the request's row, its config and its photos, as the client does.

        The row is in no queue: nobody but the test starts its onboarding.

        Args:
            wish: The request.
            **behaviour: What the stand-in for training is to do (``tests.support.trainer``).
        """
        shard = keys.shard_of(wish.user_id)
        row = Request.new(
            wish.request_id,
            wish.user_id,
            wish.model_id,
            retrain=wish.retrain,
            steps=TrainingConfig().steps,
            photos=3,
            input_digest="0" * 64,
            queued=False,
        )
        row = row.model_copy(update={"attempt": wish.attempt})
        # As dispatch leaves it: leased, and still in the index of what has not ended.
        item = {**row.to_item(), "lease_until": {"S": utc_now()}, "open": {"S": shard}}
        self.laptop.client("dynamodb").put_item(
            TableName=self.outputs["RequestsTableName"], Item=item
        )
        self.put_config(wish)
        prefix = keys.uploads_prefix(wish.user_id, wish.request_id)
        photos = {f"{number}.png": b"photo" for number in range(3)}
        if behaviour:
            photos["behave"] = json.dumps(behaviour).encode()
        for name, body in photos.items():
            self.put_object(f"{prefix}{name}", body)

    def put_config(self, wish: OnboardingInput, config: bytes | None = None) -> None:
        """Writes the request's training config; the default one if there is none."""
        key = f"{keys.config_prefix(wish.request_id)}{keys.CONFIG_FILE}"
        self.put_object(key, config or TrainingConfig().model_dump_json().encode())

    def put_object(self, key: str, body: bytes) -> None:
        self.laptop.s3.put_object(Bucket=self.outputs["BucketName"], Key=key, Body=body)

    def start(
        self, wish: OnboardingInput, name: str | None = None, *, machine: str | None = None
    ) -> str:
        """Starts the machine; returns the execution's ARN."""
        arn: str = self.laptop.states.start_execution(
            stateMachineArn=machine or self.outputs["OnboardMachineArn"],
            name=name or keys.execution_name(wish.request_id),
            input=wish.model_dump_json(),
        )["executionArn"]
        return arn

    def onboard(
        self, wish: OnboardingInput, deadline_s: float = DEADLINE_S, **behaviour: Any
    ) -> dict[str, Any]:
        """Puts the request, runs the machine to its end, returns DescribeExecution's answer."""
        self.put_request(wish, **behaviour)
        return self.laptop.finish(self.start(wish), deadline_s)

    # -- A batch ----------------------------------------------------------------------------------

    def batch(self, *wishes: OnboardingInput) -> BatchInput:
        """The input of the machine of batches."""
        executions = [keys.execution_name(wish.request_id, wish.attempt) for wish in wishes]
        return BatchInput(batch_id=keys.batch_id(executions), requests=wishes)

    def start_batch(self, batch: BatchInput) -> str:
        """Starts the machine of batches; returns the execution's ARN."""
        arn: str = self.laptop.states.start_execution(
            stateMachineArn=self.outputs["OnboardBatchMachineArn"],
            name=keys.execution_name(batch.batch_id, batch.attempt),
            input=batch.model_dump_json(),
        )["executionArn"]
        return arn

    def onboard_batch(
        self, *wishes: OnboardingInput, deadline_s: float = DEADLINE_S
    ) -> dict[str, Any]:
        """Runs a batch of requests, which lie there already, to its end."""
        return self.laptop.finish(self.start_batch(self.batch(*wishes)), deadline_s)

    # -- What it left -----------------------------------------------------------------------------

    def table(self, output: str) -> Any:
        import boto3

        return boto3.resource(
            "dynamodb",
            endpoint_url=self.laptop.laptop.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ).Table(self.outputs[output])

    def request(self, wish: OnboardingInput) -> dict[str, Any]:
        """The request's row."""
        item = self.table("RequestsTableName").get_item(Key={"request_id": wish.request_id})
        row: dict[str, Any] = item["Item"]
        return row

    def model(self, wish: OnboardingInput, row: str = "default") -> dict[str, Any] | None:
        """A row of the models table."""
        key = {"user_id": wish.user_id, "model_row": row}
        item: dict[str, Any] | None = self.table("ModelsTableName").get_item(Key=key).get("Item")
        return item

    def states(self, execution: dict[str, Any]) -> list[str]:
        """The states that an execution has entered, in order."""
        return [
            event["stateEnteredEventDetails"]["name"]
            for event in self.history(execution)
            if event["type"].endswith("StateEntered")
        ]

    def history(self, execution: dict[str, Any]) -> list[dict[str, Any]]:
        pages = self.laptop.states.get_paginator("get_execution_history").paginate(
            executionArn=execution["executionArn"]
        )
        return [event for page in pages for event in page["events"]]

    def failed_tries(self, execution: dict[str, Any]) -> list[str]:
        """Error names of the failed tries of FineTune."""
        return [
            event["taskFailedEventDetails"]["error"]
            for event in self.history(execution)
            if event["type"] == "TaskFailed"
            and event["taskFailedEventDetails"]["error"].startswith("SageMaker.")
        ]

    def jobs(self, wish: OnboardingInput | BatchInput) -> list[str]:
        """Names of the training jobs of a request, or of a batch."""
        name = wish.batch_id if isinstance(wish, BatchInput) else wish.request_id
        pages = self.laptop.sagemaker.get_paginator("list_training_jobs").paginate(
            NameContains=name
        )
        return sorted(
            job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]
        )

    def job(self, name: str) -> dict[str, Any]:
        """DescribeTrainingJob's answer."""
        answer: dict[str, Any] = self.laptop.sagemaker.describe_training_job(TrainingJobName=name)
        return answer

    def artifact_keys(self, wish: OnboardingInput) -> list[str]:
        """What lies under the endpoint's prefix for the user."""
        listed = self.laptop.s3.list_objects_v2(
            Bucket=self.outputs["BucketName"], Prefix=f"{keys.MODELS}/{wish.user_id}/"
        )
        return sorted(item["Key"] for item in listed.get("Contents", []))

    def notifications(self, wish: OnboardingInput, count: int = 1) -> list[dict[str, Any]]:
        """The request's notifications; waits for that many."""
        return until(lambda: self._received(wish), lambda found: len(found) >= count)

    def _received(self, wish: OnboardingInput) -> list[dict[str, Any]]:
        # Hidden for longer than the tests take, so that each is received once.
        sqs = self.laptop.client("sqs")
        while messages := sqs.receive_message(
            QueueUrl=self.queue_url, MaxNumberOfMessages=10, VisibilityTimeout=3600
        ).get("Messages", []):
            for message in messages:
                body = json.loads(json.loads(message["Body"])["Message"])
                self.heard[message["MessageId"]] = body
        return [body for body in self.heard.values() if body["request_id"] == wish.request_id]


def deploy(laptop: TestLaptop, base: Path) -> dict[str, str]:
    """Puts the stack on a laptop, with a base that light images do not look into."""
    (base / "model_index.json").write_text("{}")
    deadline = time.monotonic() + DEPLOY_DEADLINE_S
    return deploy_stack(laptop.laptop.endpoint_url, deadline, base=base)


def listen(laptop: TestLaptop, topic_arn: str) -> str:
    """A new queue that hears a topic; returns its URL."""
    sqs = laptop.client("sqs")
    queue_url: str = sqs.create_queue(QueueName="heard")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    laptop.client("sns").subscribe(
        TopicArn=topic_arn, Protocol="sqs", Endpoint=attributes["Attributes"]["QueueArn"]
    )
    return queue_url


@pytest.fixture(scope="session")
def session_stack(
    session_laptop: TestLaptop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    outputs = deploy(session_laptop, tmp_path_factory.mktemp("base"))
    _slow_schedules_down(session_laptop)
    yield Stack(session_laptop, outputs, listen(session_laptop, outputs["TopicArn"]))


def _slow_schedules_down(laptop: TestLaptop) -> None:
    """Tests fire the schedules themselves (``control.fire_rule``).

    On the tests' clock a minute takes less than a second: the functions behind the schedules would
    keep a machine of two cores busy, and every test would wait for them.
    """
    events = laptop.client("events")
    for rule in events.list_rules()["Rules"]:
        if "ScheduleExpression" in rule:
            events.put_rule(Name=rule["Name"], ScheduleExpression="rate(30 days)")


@pytest.fixture
def stack(session_stack: Stack, laptop: TestLaptop) -> Stack:
    """The session's stack on a good day."""
    assert laptop is session_stack.laptop
    return session_stack
