"""A laptop for crowds: deployed, waits skipped, a shell script as trainer, one topic heard.

Its daemon is its own: trouble and clock belong to whoever holds it, and the session's laptop stays
as it is.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from limner import local
from limner.contracts import keys
from limner.contracts.times import as_text
from limner.local.images import INFERENCE_IMAGE, TRAINING_IMAGE
from limner.registry import Request
from tests.support.faults.laptop_cells import TRAINER
from tests.support.faults.world import ROOT
from tests.support.laptop import TestLaptop, until
from tests.support.onboarding import deploy, listen

MODEL: Final = "default"
MANY_MODELS: Final = 10_000
DEADLINE_S: Final = 160
_AT_ONCE: Final = 16
_PAGE: Final = 1_000


@dataclass
class LightLaptop:
    """A deployed laptop and what tests of crowds ask of it."""

    laptop: TestLaptop
    outputs: dict[str, str]
    queue_url: str
    heard: dict[str, dict[str, Any]] = field(default_factory=dict)

    # -- Before -----------------------------------------------------------------------------------

    def put(
        self,
        request_id: str,
        user_id: str,
        *,
        fails: bool = False,
        queued: bool = False,
        poisoned: bool = False,
    ) -> None:
        """Writes a request's config, a photo and its row.

        Args:
            request_id: The request.
            user_id: Whose.
            fails: Whether its training fails.
            queued: Whether it waits in the queue.
            poisoned: Whether its row is one that no program of ours writes.
        """
        row = Request.new(
            request_id,
            user_id,
            MODEL,
            retrain=False,
            steps=1,
            photos=1,
            input_digest="0" * 64,
            queued=queued,
        )
        item = row.to_item()
        if poisoned:
            item["attempt"] = {"S": "poison"}
        photos = keys.uploads_prefix(user_id, request_id)
        for key in (f"{keys.config_prefix(request_id)}config.json", f"{photos}1.png"):
            self.put_object(key, b"{}")
        if fails:
            self.put_object(f"{photos}fail", b"yes")
        self.dynamodb.put_item(TableName=self.outputs["RequestsTableName"], Item=item)

    def put_object(self, key: str, body: bytes) -> None:
        self.laptop.s3.put_object(Bucket=self.outputs["BucketName"], Key=key, Body=body)

    def put_model(self, user_id: str) -> None:
        """Writes a model whose version 1 serves."""
        target = keys.target_model(user_id, MODEL, 1)
        self.dynamodb.put_item(
            TableName=self.outputs["ModelsTableName"],
            Item={
                "user_id": {"S": user_id},
                "model_row": {"S": MODEL},
                "last_version": {"N": "1"},
                "live_version": {"N": "1"},
                "target_model": {"S": target},
            },
        )

    def start(self, request_id: str, user_id: str) -> None:
        """Starts the request's execution."""
        document = {
            "schema_version": 1,
            "request_id": request_id,
            "user_id": user_id,
            "model_id": MODEL,
            "attempt": 1,
            "retrain": False,
        }
        self.laptop.states.start_execution(
            stateMachineArn=self.outputs["OnboardMachineArn"],
            name=keys.execution_name(request_id),
            input=json.dumps(document, separators=(",", ":")),
        )

    def each(self, act: Any, items: Sequence[Any]) -> None:
        """Does something for all items, many at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(act, items):
                pass

    # -- After ------------------------------------------------------------------------------------

    @property
    def dynamodb(self) -> Any:
        return self._client("dynamodb")

    @property
    def sqs(self) -> Any:
        return self._client("sqs")

    def _client(self, service: str) -> Any:
        known = self.__dict__.setdefault("_clients", {})
        if service not in known:
            known[service] = self.laptop.client(service)
        return known[service]

    def rest(self, request_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Waits until all of these requests have ended; their rows."""
        wanted = set(request_ids)

        def look() -> dict[str, dict[str, Any]]:
            rows = self._scan(self.outputs["RequestsTableName"])
            return {row["request_id"]["S"]: row for row in rows}

        def ended(rows: dict[str, dict[str, Any]]) -> bool:
            states = [rows.get(name, {}).get("status", {}).get("S") for name in wanted]
            return all(state in ("READY", "FAILED", "CANCELLED") for state in states)

        def slowly() -> dict[str, dict[str, Any]]:
            time.sleep(0.3)  # a scan of all rows is dear
            return look()

        rows = until(slowly, ended, DEADLINE_S)
        return {name: row for name, row in rows.items() if name in wanted}

    def reconcile(self, request_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Lets reconcile look at what executions have left open; the rows of these requests.

        Its schedule stands still on this laptop, and no request has waited long enough for it.
        """
        machine = self.outputs["OnboardMachineArn"]
        until(
            lambda: self.laptop.states.list_executions(
                stateMachineArn=machine, statusFilter="RUNNING"
            )["executions"],
            lambda running: not running,
            DEADLINE_S,
        )
        moment = {"S": as_text(datetime.now(UTC) - timedelta(hours=1))}
        for name, row in self.rest(request_ids).items():
            if "open" in row:
                self.dynamodb.update_item(
                    TableName=self.outputs["RequestsTableName"],
                    Key={"request_id": {"S": name}},
                    UpdateExpression="SET updated_at = :moment",
                    ExpressionAttributeValues={":moment": moment},
                )
        answer = self._client("lambda").invoke(
            FunctionName=self.outputs["ReconcileFunctionName"],
            Payload=json.dumps({"detail-type": "Scheduled Event"}).encode(),
        )
        assert "FunctionError" not in answer, answer["Payload"].read()
        return self.rest(request_ids)

    def models(self) -> dict[tuple[str, str], dict[str, Any]]:
        """All rows of models and versions."""
        rows = self._scan(self.outputs["ModelsTableName"])
        return {(row["user_id"]["S"], row["model_row"]["S"]): row for row in rows}

    def gate(self) -> dict[str, Any]:
        """Who holds the gate."""
        key = {"request_id": {"S": keys.GATE_ROW}}
        table = self.outputs["RequestsTableName"]
        row = self.dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True).get("Item", {})
        held: dict[str, Any] = row.get("holders", {}).get("M", {})
        return held

    def jobs(self) -> list[str]:
        """Names of all training jobs."""
        pages = self.laptop.sagemaker.get_paginator("list_training_jobs").paginate()
        return [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]

    def told(self) -> Counter[str]:
        """How often each request was announced so far."""
        while messages := self.sqs.receive_message(
            QueueUrl=self.queue_url, MaxNumberOfMessages=10, VisibilityTimeout=600
        ).get("Messages", []):
            for message in messages:
                self.heard[message["MessageId"]] = json.loads(
                    json.loads(message["Body"])["Message"]
                )
        return Counter(body["request_id"] for body in self.heard.values())

    def _scan(self, table: str) -> list[dict[str, Any]]:
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        return [item for page in pages for item in page["Items"]]


@contextmanager
def light_laptop(project: Path) -> Iterator[LightLaptop]:
    """Starts a laptop for crowds, and stops it."""
    started = local.start(
        project,
        port=0,
        clock_scale=0,
        deploy=False,
        jobs_at_once=8,
        instance_quota=MANY_MODELS,
    )
    try:
        laptop = TestLaptop(started)
        endpoint = str(ROOT / "tests" / "support" / "endpoint.py")
        holding = f"TEST_MAX_MODELS={MANY_MODELS}"
        laptop.control.register_image(TRAINING_IMAGE, ["/bin/sh", "-c", TRAINER])
        laptop.control.register_image(
            INFERENCE_IMAGE, ["/usr/bin/env", holding, sys.executable, endpoint]
        )
        base = project / "base"
        base.mkdir()
        outputs = deploy(laptop, base)
        queue_url = listen(laptop, outputs["TopicArn"])
        yield LightLaptop(laptop, outputs, queue_url)
    finally:
        local.stop(project)
