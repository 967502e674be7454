"""``Stack`` on moto: the same tables, bucket, topic and queue, and the same machines, in process.

The rule on executions that end is told by hand here, because moto has no events of its own:
``MotoLaptop.finish`` comes back when the rule's function has answered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Final, Literal
from unittest.mock import patch

import boto3
from moto import mock_aws

from limner.local.control import FOREVER
from limner.local.trouble import CREATE_TRAINING_JOB, Fault, Plan, Trouble
from tests.support.engines.functions import Functions
from tests.support.engines.sagemaker import Endpoint, Objects, Training
from tests.support.engines.seams import installed
from tests.support.engines.world import World
from tests.support.laptop import DEADLINE_S, TestLaptop, until
from tests.support.onboarding import Stack
from workflows import asl

REGION: Final = "us-east-1"
BUCKET: Final = "limner-bucket"
MODELS: Final = "limner-models"
REQUESTS: Final = "limner-requests"
BASE_ID: Final = "tiny-1"
_ACCOUNT: Final = f"{REGION}:123456789012"
TOPIC: Final = f"arn:aws:sns:{_ACCOUNT}:limner-topic"
ROLE: Final = "arn:aws:iam::123456789012:role/limner-machine"
UNWELL: Final = frozenset({"FAILED", "ABORTED", "TIMED_OUT"})
# The names in the environment of our functions; each reads those that it knows.
ENVIRONMENT: Final = {
    "AWS_DEFAULT_REGION": REGION,
    "STAGE": "test",
    "BUCKET": BUCKET,
    "MODELS_TABLE": MODELS,
    "REQUESTS_TABLE": REQUESTS,
    "TOPIC_ARN": TOPIC,
    "ENDPOINT_NAME": "limner-endpoint",
    "BASE_ID": BASE_ID,
    "BUS_NAME": "default",
    "ONBOARD_MACHINE_ARN": f"arn:aws:states:{_ACCOUNT}:stateMachine:onboard",
    "BATCH_MACHINE_ARN": f"arn:aws:states:{_ACCOUNT}:stateMachine:onboard_batch",
    "WORKER_MACHINE_ARN": f"arn:aws:states:{_ACCOUNT}:stateMachine:worker",
    "JOB_PREFIX": "limner-",
    "GRACE_S": "60",
    "BATCH_INSTANCES": "2",
    "BATCH_TARGET_S": "3600",
    "QUALITY_SIMILARITY_GAIN": "-0.1",
}
# What stands for the placeholders of the published machines.
VALUES: Final = {
    "BucketName": BUCKET,
    "ModelsTableName": MODELS,
    "RequestsTableName": REQUESTS,
    "TopicArn": TOPIC,
    "TrainingRoleArn": "arn:aws:iam::123456789012:role/limner-training",
    "TrainingImage": "limner/training:test",
    "TrainingInstanceType": "ml.g5.xlarge",
    "TrainingInstanceTypes": "ml.g5.xlarge,ml.g5.2xlarge,ml.g6.xlarge",
    "BaseId": BASE_ID,
}


def definition(name: str) -> str:
    """A published machine with the names of this stack filled in."""
    return asl.load(name, {wanted: _value(wanted) for wanted in asl.placeholders(name)})


def _value(placeholder: str) -> str:
    if placeholder in VALUES:
        return VALUES[placeholder]
    # What is left are our functions: SmokeTestArn is of lambdas/smoke_test.
    words = re.findall("[A-Z][a-z]*", placeholder.removesuffix("Arn"))
    return f"arn:aws:lambda:{_ACCOUNT}:function:{'_'.join(words).lower()}"


class MotoControl:
    """``limner.local.control.Control``, as far as tests of the machines use it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def trouble(
        self,
        *,
        throttle_next: int | Literal["forever"] = 0,
        quota_full: bool = False,
        instance_quota: int | None = None,
        capacity_failures: int = 0,
        faults: Sequence[Fault] = (),
    ) -> None:
        """Replaces all trouble by this."""
        throttles: tuple[Fault, ...] = ()
        if throttle_next:
            times = None if throttle_next == FOREVER else int(throttle_next)
            code, message = "ThrottlingException", "Rate exceeded"
            throttles = (Fault(CREATE_TRAINING_JOB, times=times, code=code, message=message),)
        plan = Plan(
            instance_quota=0 if quota_full else instance_quota,
            capacity_failures=capacity_failures,
            faults=(*throttles, *faults),
        )
        self._world.trouble.set(plan)

    def trouble_left(self) -> dict[str, int | None]:
        """How often each ordered fault will still strike."""
        return self._world.trouble.left()

    def clock(self, _scale: float, *, timeouts: float | None = None) -> None:
        """Turns the clock of TimeoutSeconds; waits are recorded and take no time here."""
        if timeouts is not None:
            self._world.timeouts = timeouts


class MotoLaptop(TestLaptop):
    """The clients of a laptop, all of them of moto."""

    @cached_property
    def control(self) -> Any:
        return MotoControl(self.world)

    @property
    def world(self) -> World:
        """Who answers."""
        world: World = self.laptop.world
        return world

    def client(self, service: str, **options: Any) -> Any:
        """A boto3 client; moto answers it."""
        return boto3.client(service, region_name=REGION, **options)

    def finish(self, execution: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Waits for the end of an execution, and for the rule that hears of it."""
        until(lambda: execution in self.laptop.ended, bool, deadline_s)
        answer: dict[str, Any] = self.states.describe_execution(executionArn=execution)
        return answer


class MotoStack(Stack):
    """The deployed stack, in process."""

    @property
    def world(self) -> World:
        """Who answers, and what was recorded."""
        world: World = self.laptop.laptop.world  # type: ignore[attr-defined]
        return world


@contextmanager
def moto_stack(machines: Mapping[str, str] | None = None) -> Iterator[MotoStack]:
    """A fresh stack, which lasts as long as the block.

    Args:
        machines: Definitions by name; the published ``onboard`` where absent.
    """
    definitions = machines or {"onboard": definition("onboard")}
    surroundings = {**ENVIRONMENT, **dict.fromkeys(_CREDENTIALS, "test")}
    with patch.dict(os.environ, surroundings):
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            os.environ.pop(name, None)
        with mock_aws(config=_MOTO), _clients_for_ever():
            ended: set[str] = set()
            world = _world(ended)
            with installed(world):
                outputs, queue_url = _deploy(definitions)
                running = SimpleNamespace(endpoint_url=None, world=world, ended=ended)
                yield MotoStack(MotoLaptop(running), outputs, queue_url)  # type: ignore[arg-type]


_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MOTO: Any = {
    "core": {"reset_boto3_session": False},
    "stepfunctions": {"execute_state_machine": True},
}
_SESSION: Final = boto3.session.Session(region_name=REGION)
_CLIENTS: Final[dict[tuple[str, ...], Any]] = {}


@contextmanager
def _clients_for_ever() -> Iterator[None]:
    """Makes each kind of client once a process: a tenth of a second each time is half of a test."""

    def kept(make: Callable[..., Any]) -> Callable[..., Any]:
        def client(service_name: str, **options: Any) -> Any:
            config = getattr(options.get("config"), "_user_provided_options", {})
            key = (make.__name__, service_name, str(sorted(config.items())))
            if key not in _CLIENTS:
                _CLIENTS[key] = make(service_name, **{"region_name": REGION, **options})
            return _CLIENTS[key]

        return client

    with (
        patch.object(boto3, "client", kept(_SESSION.client)),
        patch.object(boto3, "resource", kept(_SESSION.resource)),
    ):
        yield


def _world(ended: set[str]) -> World:
    trouble = Trouble()
    objects = Objects(lambda: boto3.client("s3", region_name=REGION))
    functions = Functions()

    def on_end(execution: Any) -> None:
        detail = {
            "executionArn": execution.exec_arn,
            "stateMachineArn": execution.state_machine.arn,
            "name": execution.name,
            "status": execution.status,
            "input": execution.execution_input,
            "error": execution.error,
            "cause": execution.cause,
        }
        try:
            if execution.status in UNWELL and execution.state_machine.name == "onboard":
                # The program's state is where moto keeps what StopExecution was told.
                stopped = execution.exec_worker.env.program_state()
                detail |= {
                    name: getattr(stopped, name)
                    for name in ("error", "cause")
                    if isinstance(getattr(stopped, name, None), str)
                }
                functions.call(
                    "record_failure",
                    {
                        "source": "aws.states",
                        "detail-type": "Step Functions Execution Status Change",
                        "detail": detail,
                    },
                )
        finally:
            ended.add(execution.exec_arn)

    return World(
        trouble,
        Training(trouble, objects),
        Endpoint(BASE_ID, objects, BUCKET),
        functions,
        on_end,
    )


def _deploy(definitions: Mapping[str, str]) -> tuple[dict[str, str], str]:
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    _create_table(MODELS, ("user_id", "model_row"))
    _create_table(REQUESTS, ("request_id",), {"open": "updated_at", "queue": "queued_at"})
    topic = boto3.client("sns").create_topic(Name=TOPIC.rpartition(":")[2])["TopicArn"]
    assert topic == TOPIC
    sqs = boto3.client("sqs")
    queue_url: str = sqs.create_queue(QueueName="heard")["QueueUrl"]
    queue = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    boto3.client("sns").subscribe(
        TopicArn=TOPIC, Protocol="sqs", Endpoint=queue["Attributes"]["QueueArn"]
    )
    outputs = {
        "BucketName": BUCKET,
        "ModelsTableName": MODELS,
        "RequestsTableName": REQUESTS,
        "TopicArn": TOPIC,
        "EndpointName": ENVIRONMENT["ENDPOINT_NAME"],
        "BaseId": BASE_ID,
    }
    states = boto3.client("stepfunctions")
    for name, text in definitions.items():
        arn = states.create_state_machine(name=name, definition=text, roleArn=ROLE)
        outputs[_OUTPUTS.get(name, name)] = arn["stateMachineArn"]
    return outputs, queue_url


_OUTPUTS: Final = {"onboard": "OnboardMachineArn", "onboard_batch": "OnboardBatchMachineArn"}


def _create_table(table: str, key: tuple[str, ...], indexes: dict[str, str] | None = None) -> None:
    def schema(names: tuple[str, ...]) -> list[dict[str, str]]:
        kinds = ("HASH", "RANGE")
        return [
            {"AttributeName": name, "KeyType": kind}
            for name, kind in zip(names, kinds, strict=False)
        ]

    indexed = [
        {
            "IndexName": name,
            "KeySchema": schema((name, sort)),
            "Projection": {"ProjectionType": "ALL"},
        }
        for name, sort in (indexes or {}).items()
    ]
    names = dict.fromkeys((*key, *(indexes or {}), *(indexes or {}).values()))
    dynamodb: Any = boto3.client("dynamodb")
    dynamodb.create_table(
        TableName=table,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=schema(key),
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in names],
        **({"GlobalSecondaryIndexes": indexed} if indexed else {}),
    )
