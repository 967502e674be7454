"""The world around dispatch and reconcile: real conditional writes, machines that do as told.

DynamoDB is moto's, so that conditions and indexes are real. Step Functions, SageMaker and SNS are
a few dictionaries: what matters is what a start by name does, and what happens when a call fails,
before or after its effect.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from lambdas.dispatch.gate import Limits
from lambdas.dispatch.gate_row import GateRow
from lambdas.dispatch.logic import Rules
from lambdas.dispatch.round import Round, Tally
from lambdas.dispatch.waiting import Waiting
from lambdas.dispatch.workers import Workers
from lambdas.reconcile.jobs import Jobs
from lambdas.reconcile.notes import Notes
from lambdas.reconcile.repairs import Repairs
from lambdas.reconcile.sweep import Sweep
from lambdas.reconcile.sweep import Tally as SweepTally
from lambdas.shared.clock import Clock, iso
from lambdas.shared.dynamo import Table, to_attribute, to_plain
from lambdas.shared.executions import Executions, Machines
from limner.contracts import keys
from limner.contracts.onboarding import BatchInput, OnboardingInput, WorkerInput
from tests.support.faults.dynamo import Memory

ARN = "arn:aws:states:us-east-1:123456789012:stateMachine"
MACHINES = Machines(f"{ARN}:onboard", f"{ARN}:onboard_batch", f"{ARN}:worker")
START_MS = 1_790_000_000_000
LOG = logging.getLogger("test.dispatching")
LOG.addHandler(logging.NullHandler())

RULES = Rules(
    limits=Limits(
        max_instances=100, launches_per_second=1, burst=10, daily_launches=10_000, user_active=1
    ),
    batch_from=1_000_000,
    batch_size=100,
    batch_instances=2,
    lease_s=120,
)


def refusal(code: str, operation: str, status: int = 400) -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": f"{code}."},
            "ResponseMetadata": {"HTTPStatusCode": status},  # type: ignore[typeddict-item]
        },
        operation,
    )


class Cut(Exception):  # noqa: N818 - no error of the program: the machine is gone
    """The function dies here."""


@dataclass
class Time:
    """A clock that only waiting moves."""

    now_ms: int = START_MS
    lifetime_ms: int = 60_000
    born_ms: int = START_MS
    paused_s: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        """The clock of a new invocation."""
        self.born_ms = self.now_ms
        return Clock(lambda: self.now_ms, self._pause, self._remaining_ms)

    def _pause(self, seconds: float) -> None:
        self.paused_s.append(seconds)
        self.now_ms += round(seconds * 1000)

    def _remaining_ms(self) -> int:
        return self.born_ms + self.lifetime_ms - self.now_ms

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


@dataclass
class Calls:
    """Counts calls to AWS; lets the function die before or after the effect of one of them."""

    count: int = 0
    die_at: int | None = None
    after: bool = False
    names: list[str] = field(default_factory=list)

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        self.count += 1
        self.names.append(name)
        if self.count == self.die_at and not self.after:
            raise Cut(name)
        yield
        if self.count == self.die_at and self.after:
            raise Cut(name)


class Counted:
    """A client whose calls are counted."""

    def __init__(self, client: Any, calls: Calls) -> None:
        self._client = client
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(**arguments: Any) -> Any:
            with self._calls.one(name):
                return method(**arguments)

        return call


class FakeStates:
    """Step Functions, as far as names are concerned (StartExecution, API reference)."""

    def __init__(self) -> None:
        self.executions: dict[str, dict[str, Any]] = {}
        self.starts: list[str] = []
        self.refuse: list[ClientError | EndpointConnectionError] = []
        self.lose_reply = False

    def start_execution(self, *, stateMachineArn: str, name: str, input: str) -> Any:  # noqa: A002, N803
        if self.refuse:
            raise self.refuse.pop(0)
        contracts = {"onboard": OnboardingInput, "onboard_batch": BatchInput, "worker": WorkerInput}
        contracts[stateMachineArn.rpartition(":")[2]].model_validate_json(input)
        arn = stateMachineArn.replace(":stateMachine:", ":execution:") + f":{name}"
        there = self.executions.get(arn)
        if there and (there["status"] != "RUNNING" or there["input"] != input):
            raise refusal("ExecutionAlreadyExists", "StartExecution")
        if not there:
            self.starts.append(name)
            self.executions[arn] = {"executionArn": arn, "status": "RUNNING", "input": input}
        if self.lose_reply:
            self.lose_reply = False
            raise EndpointConnectionError(endpoint_url="https://states")
        return {"executionArn": arn}

    def list_executions(self, *, stateMachineArn: str, statusFilter: str, maxResults: int) -> Any:  # noqa: N803
        prefix = stateMachineArn.replace(":stateMachine:", ":execution:") + ":"
        found = [
            {"executionArn": arn, "name": arn.removeprefix(prefix)}
            for arn, execution in self.executions.items()
            if arn.startswith(prefix) and execution["status"] == statusFilter
        ]
        return {"executions": found[:maxResults]}

    def describe_execution(self, *, executionArn: str) -> Any:  # noqa: N803
        if executionArn not in self.executions:
            raise refusal("ExecutionDoesNotExist", "DescribeExecution")
        return self.executions[executionArn]

    def stop_execution(self, *, executionArn: str, error: str, cause: str) -> Any:  # noqa: N803
        self.executions[executionArn] |= {"status": "ABORTED", "error": error, "cause": cause}
        return {}


class FakeJobs:
    """SageMaker's training jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}

    def describe_training_job(self, *, TrainingJobName: str) -> Any:  # noqa: N803
        if TrainingJobName not in self.jobs:
            raise refusal("ResourceNotFound", "DescribeTrainingJob")
        return self.jobs[TrainingJobName]

    def stop_training_job(self, *, TrainingJobName: str) -> Any:  # noqa: N803
        self.jobs[TrainingJobName]["TrainingJobStatus"] = "Stopping"
        return {}


class World:
    """Tables, machines, jobs and the topic."""

    def __init__(self, dynamodb: Any) -> None:
        self.time = Time()
        self.calls = Calls()
        self.dynamodb = dynamodb
        self.states = FakeStates()
        self.sagemaker = FakeJobs()
        self.published: list[dict[str, Any]] = []
        self.rules = RULES
        self.invocations = 0

    # -- Rows -------------------------------------------------------------------------------------

    def request(self, request_id: str, user_id: str = "", **changes: Any) -> None:
        """A QUEUED request in the queue; None removes a field."""
        user_id = user_id or f"user-{request_id}"
        shard = keys.shard_of(user_id)
        now = iso(self.time.now_ms)
        row = {
            "request_id": request_id,
            "user_id": user_id,
            "model_id": "default",
            "status": "QUEUED",
            "created_at": now,
            "updated_at": now,
            "queued_at": now,
            "attempt": 1,
            "retrain": False,
            "shard": shard,
            "open": shard,
            "queue": shard,
            **changes,
        }
        self.put("requests", {k: v for k, v in row.items() if v is not None})

    def put(self, table: str, row: dict[str, Any]) -> None:
        item = {name: to_attribute(value) for name, value in row.items()}
        self.dynamodb.put_item(TableName=table, Item=item)

    def row(self, request_id: str) -> dict[str, Any]:
        return self._get("requests", request_id=request_id) or {}

    def model(self, user_id: str, row: str = "default") -> dict[str, Any] | None:
        return self._get("models", user_id=user_id, model_row=row)

    def _get(self, table: str, **key: str) -> dict[str, Any] | None:
        attributes = {name: {"S": value} for name, value in key.items()}
        item = self.dynamodb.get_item(TableName=table, Key=attributes).get("Item")
        return {name: to_plain(value) for name, value in item.items()} if item else None

    @property
    def holders(self) -> dict[str, Any]:
        found: dict[str, Any] = self.row(keys.GATE_ROW).get("holders", {})
        return found

    # -- The machines -----------------------------------------------------------------------------

    def claim(self, request_id: str, execution: str, *, batch: bool = False) -> str:
        """What ClaimRequest and RecordAttempt do."""
        owner = MACHINES.execution(execution, batch=batch)
        row = self.row(request_id)
        for gone in ("queue", "lease_until", "lease_by"):
            row.pop(gone, None)
        row |= {
            "status": "TRAINING",
            "owner": owner,
            "updated_at": iso(self.time.now_ms),
            "job_name": keys.job_name(request_id, row["attempt"]),
        }
        self.put("requests", row)
        model = {"user_id": row["user_id"], "model_row": "default", "active_request": request_id}
        self.put("models", model)
        return owner

    def end_execution(self, name: str, status: str, *, batch: bool = False, **words: str) -> None:
        arn = MACHINES.execution(name, batch=batch)
        self.states.executions.setdefault(arn, {"executionArn": arn, "input": "{}"})
        self.states.executions[arn] |= {"status": status, **words}

    def running(self) -> list[str]:
        return [
            arn.rpartition(":")[2]
            for arn, execution in self.states.executions.items()
            if execution["status"] == "RUNNING"
        ]

    # -- The functions ----------------------------------------------------------------------------

    def new_round(self, name: str = "") -> Round:
        self.invocations += 1
        clock = self.time.clock()
        requests = Table(Counted(self.dynamodb, self.calls), "requests")  # type: ignore[arg-type]
        return Round(
            Waiting(requests, clock, name or f"invocation-{self.invocations}", self.rules.lease_s),
            GateRow(requests, clock),
            Executions(Counted(self.states, self.calls), MACHINES, clock),  # type: ignore[arg-type]
            self.rules,
            clock,
            LOG,
        )

    def dispatch(self, *, ended: str = "") -> Tally:
        round_ = self.new_round()
        if ended:
            round_.ended(ended)
        return round_.run()

    def keep_workers(self, waiting: int) -> list[str]:
        """Starts missing workers; returns the names of all executions of workers."""
        clock = self.time.clock()
        states: Any = Counted(self.states, self.calls)
        executions = Executions(states, MACHINES, clock)
        Workers(states, executions, self.rules, clock, LOG).keep(waiting, spare_ms=1_000)
        prefix = MACHINES.worker_arn.replace(":stateMachine:", ":execution:") + ":"
        return [a.removeprefix(prefix) for a in self.states.executions if a.startswith(prefix)]

    def new_sweep(self) -> Sweep:
        clock = self.time.clock()
        dynamodb: Any = Counted(self.dynamodb, self.calls)
        requests, models = Table(dynamodb, "requests"), Table(dynamodb, "models")
        notes = Notes(requests)
        states: Any = Counted(self.states, self.calls)
        sagemaker: Any = Counted(self.sagemaker, self.calls)
        return Sweep(
            requests=requests,
            notes=notes,
            repairs=Repairs(models, requests, notes, self._publish, clock),
            executions=Executions(states, MACHINES, clock),
            jobs=Jobs(sagemaker, "limner-"),
            gate_row=GateRow(requests, clock),
            grace_s=900,
            clock=clock,
            log=LOG,
        )

    def _publish(self, body: Any) -> None:
        with self.calls.one("publish"):
            self.published.append(json.loads(json.dumps(body)))

    def reconcile(self) -> SweepTally:
        return self.new_sweep().run()

    def survive(self, work: Callable[[], Any]) -> None:
        """Runs something that may die."""
        with suppress(Cut):
            work()

    def with_limits(self, **changes: Any) -> None:
        self.rules = replace(self.rules, limits=replace(self.rules.limits, **changes))

    def with_rules(self, **changes: Any) -> None:
        self.rules = replace(self.rules, **changes)


def _create_tables(dynamodb: Any) -> None:
    def key(hash_: str, range_: str) -> list[dict[str, str]]:
        return [
            {"AttributeName": hash_, "KeyType": "HASH"},
            {"AttributeName": range_, "KeyType": "RANGE"},
        ]

    def names(*attributes: str) -> list[dict[str, str]]:
        return [{"AttributeName": name, "AttributeType": "S"} for name in attributes]

    dynamodb.create_table(
        TableName="models",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=names("user_id", "model_row"),
        KeySchema=key("user_id", "model_row"),
    )
    dynamodb.create_table(
        TableName="requests",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=names("request_id", "queue", "queued_at", "open", "updated_at"),
        KeySchema=[{"AttributeName": "request_id", "KeyType": "HASH"}],
        GlobalSecondaryIndexes=[
            {
                "IndexName": index,
                "KeySchema": key(index, moment),
                "Projection": {"ProjectionType": "ALL"},
            }
            for index, moment in (("queue", "queued_at"), ("open", "updated_at"))
        ],
    )


@contextmanager
def new_world() -> Iterator[World]:
    """A world with moto's tables."""
    with mock_aws():
        dynamodb = boto3.client("dynamodb", region_name="us-east-1")
        _create_tables(dynamodb)
        yield World(dynamodb)


def quick_world() -> World:
    """A world with tables in memory, some hundred times faster; a test compares it with moto."""
    return World(Memory())


def moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
