"""Onboardings on the deployed stack: the published machine, with light images at its two ends.

Everything between is real: the machine, the tables, the functions, the rule on executions that end,
and the topic, whose messages arrive in a queue.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from limner.contracts import keys
from limner.contracts.onboarding import OnboardingInput
from limner.local.deploy import deploy_stack
from tests.support.laptop import TestLaptop, until

DEPLOY_DEADLINE_S = 60


@dataclass(frozen=True)
class Stack:
    """The deployed stack and a queue on its topic."""

    laptop: TestLaptop
    outputs: dict[str, str]
    queue_url: str

    # -- One onboarding ---------------------------------------------------------------------------

    def wish(self, **changes: Any) -> OnboardingInput:
        """The input of an onboarding of a fresh user."""
        unique = uuid.uuid4().hex[:12]
        values = {"request_id": f"r{unique}", "user_id": f"user-{unique}", "hyperparameters": {}}
        return OnboardingInput.model_validate({**values, **changes})

    def put_request(self, wish: OnboardingInput) -> None:
        """Writes the request's row and uploads its photos, as the client does."""
        now = datetime.now(UTC).isoformat()
        self.table("RequestsTableName").put_item(
            Item={
                "request_id": wish.request_id,
                "user_id": wish.user_id,
                "model_id": wish.model_id,
                "status": "QUEUED",
                "created_at": now,
                "updated_at": now,
                "photos": 3,
                "attempt": wish.attempt,
                "input_digest": "0" * 64,
            }
        )
        prefix = keys.uploads_prefix(wish.user_id, wish.request_id)
        for number in range(3):
            key = f"{prefix}{number}.png"
            self.laptop.s3.put_object(Bucket=self.outputs["BucketName"], Key=key, Body=b"photo")

    def start(self, wish: OnboardingInput, name: str | None = None) -> str:
        """Starts the machine; returns the execution's ARN."""
        arn: str = self.laptop.states.start_execution(
            stateMachineArn=self.outputs["OnboardMachineArn"],
            name=name or keys.execution_name(wish.request_id),
            input=wish.model_dump_json(),
        )["executionArn"]
        return arn

    def onboard(self, wish: OnboardingInput, deadline_s: float = 60) -> dict[str, Any]:
        """Puts the request, runs the machine to its end, returns DescribeExecution's answer."""
        self.put_request(wish)
        return self.laptop.finish(self.start(wish), deadline_s)

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

    def jobs(self, wish: OnboardingInput) -> list[str]:
        """Names of the training jobs of a request."""
        pages = self.laptop.sagemaker.get_paginator("list_training_jobs").paginate(
            NameContains=wish.request_id
        )
        return sorted(
            job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]
        )

    def artifact_keys(self, wish: OnboardingInput) -> list[str]:
        """What lies under the endpoint's prefix for the user."""
        listed = self.laptop.s3.list_objects_v2(
            Bucket=self.outputs["BucketName"], Prefix=f"{keys.MODELS}/{wish.user_id}/"
        )
        return sorted(item["Key"] for item in listed.get("Contents", []))

    def notifications(self, wish: OnboardingInput, count: int = 1) -> list[dict[str, Any]]:
        """The request's notifications; waits for that many."""
        return until(lambda: self._received(wish), lambda found: len(found) >= count, deadline_s=20)

    def _received(self, wish: OnboardingInput) -> list[dict[str, Any]]:
        # Messages stay in the queue and are hidden for a moment only: other tests read it, too.
        found: dict[str, dict[str, Any]] = {}
        sqs = self.laptop.client("sqs")
        while messages := sqs.receive_message(
            QueueUrl=self.queue_url, MaxNumberOfMessages=10, VisibilityTimeout=1
        ).get("Messages", []):
            for message in messages:
                body = json.loads(json.loads(message["Body"])["Message"])
                if body["request_id"] == wish.request_id:
                    found[message["MessageId"]] = body
        return list(found.values())


@pytest.fixture(scope="session")
def session_stack(
    session_laptop: TestLaptop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    base: Path = tmp_path_factory.mktemp("base")
    (base / "model_index.json").write_text("{}")
    outputs = deploy_stack(
        session_laptop.laptop.endpoint_url, time.monotonic() + DEPLOY_DEADLINE_S, base=base
    )
    sqs = session_laptop.client("sqs")
    queue_url = sqs.create_queue(QueueName="heard")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    session_laptop.client("sns").subscribe(
        TopicArn=outputs["TopicArn"],
        Protocol="sqs",
        Endpoint=attributes["Attributes"]["QueueArn"],
    )
    yield Stack(session_laptop, outputs, queue_url)


@pytest.fixture
def stack(session_stack: Stack, laptop: TestLaptop) -> Stack:
    """The session's stack on a good day."""
    assert laptop is session_stack.laptop
    return session_stack
