"""AWS in memory, as far as the machines and the functions need it, in virtual time.

The published machines run on ``machine``, the functions' real handlers are imported once with
clients that lead to the world of the moment, and the tables are ``dynamo.Memory``. Nothing happens
by itself: a test takes the turns, lets jobs end, and delivers or loses the events of executions.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from enum import Enum, auto
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import boto3
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError
from botocore.response import StreamingBody

from lambdas.shared import clock, metrics
from limner.contracts import keys, times
from limner.contracts.errors import LimnerError
from tests.support.archives import good_archive
from tests.support.faults.dynamo import Memory
from tests.support.faults.machine import Call, Execution, Fault, Machine, TaskFailedError, Turns
from workflows import asl

ROOT: Final = Path(__file__).resolve().parents[3]
BUCKET: Final = "bucket"
_STATES: Final = "arn:aws:states:us-east-1:123456789012"
_JOB: Final = "arn:aws:sagemaker:us-east-1:123456789012:training-job"
EPOCH_MS: Final = 1_790_000_000_000
DELIVERIES: Final = 4
UNFINISHED: Final = ("InProgress", "Stopping")
UNWELL: Final = ("FAILED", "ABORTED", "TIMED_OUT")
# The prefixes of error names: the optimized integrations, and those of the SDK for Java.
_OPTIMIZED: Final = {
    "dynamodb": "DynamoDB",
    "lambda": "Lambda",
    "sagemaker": "SageMaker",
    "sns": "SNS",
}
_SDK: Final = {
    "dynamodb": "DynamoDb",
    "s3": "S3",
    "sagemaker": "SageMaker",
    "events": "EventBridge",
}

ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "STAGE": "test",
    "ENDPOINT_NAME": "endpoint",
    "BASE_ID": "tiny-1",
    "BUCKET": BUCKET,
    "BUS_NAME": "bus",
    "MODELS_TABLE": "models",
    "REQUESTS_TABLE": "requests",
    "TOPIC_ARN": "topic",
    "ONBOARD_MACHINE_ARN": f"{_STATES}:stateMachine:onboard",
    "BATCH_MACHINE_ARN": f"{_STATES}:stateMachine:onboard_batch",
    "MAX_INSTANCES": "8",
    "LAUNCHES_PER_SECOND": "2",
    "BURST": "10",
    "DAILY_LAUNCHES": "1000",
    "USER_ACTIVE": "1",
    "BATCH_FROM": "4",
    "BATCH_SIZE": "40",
    "BATCH_INSTANCES": "2",
    "BATCH_TARGET_S": "3600",
    "LEASE_S": "120",
    "WORKER_MACHINE_ARN": f"{_STATES}:stateMachine:worker",
    "WORKERS": "0",
    "WORKER_BACKLOG": "8",
    "WORKER_PATIENCE_S": "900",
    "JOB_PREFIX": "limner-",
    "GRACE_S": "600",
}


def machine_names() -> tuple[str, ...]:
    """All published machines that own requests; a worker's owns none, and writes nothing."""
    names = (path.name.partition(".")[0] for path in asl.FOLDER.glob("*.asl.json"))
    return tuple(sorted(name for name in names if name != "worker"))


@cache
def machine(name: str) -> Machine:
    """A published machine; functions are called by their folders in ``lambdas/``."""
    return Machine.published(name, {p: _value(p) for p in asl.placeholders(name)})


def _value(placeholder: str) -> str:
    fixed = {
        "BucketName": BUCKET,
        "ModelsTableName": "models",
        "RequestsTableName": "requests",
        "TopicArn": "topic",
        "TrainingInstanceTypes": "ml.g5.xlarge,ml.g5.2xlarge,ml.g6.xlarge",
    }
    if placeholder in fixed:
        return fixed[placeholder]
    words = placeholder.removesuffix("Arn")
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")


_SPOILED: Final = {"code": "PHOTO_NOT_AN_IMAGE", "message": "1.png is not an image."}


@dataclass
class Job:
    """A training job.

    Attributes:
        request: What CreateTrainingJob was told.
        status: TrainingJobStatus.
        reason: FailureReason.
        looks: How often DescribeTrainingJob still finds it at work.
    """

    request: dict[str, Any]
    status: str = "InProgress"
    reason: str = ""
    looks: int = 1
    started_ms: int = 0

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    def describe(self) -> dict[str, Any]:
        return {
            "TrainingJobName": self.name,
            "TrainingJobArn": f"{_JOB}/{self.name}",
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.status,
            "Environment": dict(self.request.get("Environment", {})),
            **({"FailureReason": self.reason} if self.reason else {}),
        }


Outcome = Callable[[Job], tuple[str, str]]


@dataclass
class World:
    """One AWS account.

    Attributes:
        outcome: How a job ends: its status and its reason.
        spoiled: Users whose photos no task of a batch can learn from.
        swift: Users whose tasks of a batch are done before a job that fails comes to its end.
        smoke_test: Whether the new model draws; raises what the function would.
        quota: Jobs at work at the same time; None is no limit.
    """

    outcome: Outcome = lambda _: ("Completed", "")
    spoiled: frozenset[str] = frozenset()
    swift: frozenset[str] = frozenset()
    smoke_test: Callable[[str], None] = lambda _: None
    quota: int | None = None
    memory: Memory = field(default_factory=Memory)
    jobs: dict[str, Job] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    executions: dict[str, Execution] = field(default_factory=dict)
    turns: dict[str, Turns] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    served: set[str] = field(default_factory=set)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    lose_starts: bool = False
    throttled_starts: int = 0
    invocations: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    watch: Callable[[str], Loss] | None = None
    now_ms: int = EPOCH_MS

    # -- Time -------------------------------------------------------------------------------------

    def now_iso(self) -> str:
        return _iso(self.now_ms)

    def passes(self, seconds: float) -> None:
        """Turns the clock."""
        self.now_ms += int(seconds * 1000)

    # -- Executions -------------------------------------------------------------------------------

    def request_start(self, name: str, data: Any, machine_name: str = "onboard") -> dict[str, Any]:
        """StartExecution as the code calls it; a start that is lost is told to have happened."""
        arn = f"{_STATES}:execution:{machine_name}:{name}"
        if self.throttled_starts > 0:
            self.throttled_starts -= 1
            raise _client_error("StartExecution", "ThrottlingException", "Rate exceeded")
        if not self.lose_starts:
            self.start(name, data, machine_name)
        began_ms = self.begun.get(arn, self.now_ms)
        return {"executionArn": arn, "startDate": datetime.fromtimestamp(began_ms / 1000, UTC)}

    def start(self, name: str, data: Mapping[str, Any], machine_name: str = "onboard") -> Execution:
        """StartExecution: the same name and input are the same execution while it runs.

        Raises:
            ClientError: ``ExecutionAlreadyExists``.
        """
        arn = f"{_STATES}:execution:{machine_name}:{name}"
        known = self.executions.get(arn)
        if known is not None:
            if known.status == "RUNNING" and known.input == data:
                return known
            raise _client_error("StartExecution", "ExecutionAlreadyExists", arn)
        execution = Execution(machine(machine_name), arn, dict(data), self)
        self.executions[arn] = execution
        self.turns[arn] = execution.run()
        self.begun[arn] = self.now_ms
        return execution

    def advance(self, execution: Execution, fault: Fault | None = None) -> Call | None:
        """Takes one turn; returns what stands next, None at the end.

        The first turn of an execution takes no fault: nothing stands yet.
        """
        if execution.status != "RUNNING":
            return None
        self.memory.writer = execution.arn
        try:
            return self.turns[execution.arn].send(fault)
        except StopIteration:
            return None
        finally:
            self.memory.writer = None

    def finish(
        self,
        execution: Execution,
        decide: Callable[[Call], Fault | None] = lambda _: None,
    ) -> Execution:
        """Takes all turns to the end."""
        call = self.advance(execution)
        while call is not None:
            call = self.advance(execution, decide(call))
        return execution

    def stop(self, execution: Execution, cause: str = "stopped") -> None:
        """StopExecution; the job that it waits for is stopped as well."""
        if execution.status != "RUNNING":
            return
        execution.status, execution.error, execution.cause = "ABORTED", "EXECUTION_STOPPED", cause
        self.turns.pop(execution.arn).close()
        for job in self.jobs.values():
            if job.status in UNFINISHED and job.request.get("_execution") == execution.arn:
                job.status = "Stopped"

    def tell_endings(self) -> None:
        """Delivers the events of all executions that have ended since the last time."""
        for arn, execution in list(self.executions.items()):
            if execution.status != "RUNNING" and arn not in self.told:
                self.told.add(arn)
                self.tell_ending(execution)

    def lose_endings(self) -> None:
        """Loses the events of all executions that have ended since the last time."""
        self.told |= {arn for arn, e in self.executions.items() if e.status != "RUNNING"}

    def tell_ending(self, execution: Execution) -> None:
        """Delivers the event of one execution that has ended, to the functions that hear it."""
        detail = {
            "executionArn": execution.arn,
            "stateMachineArn": execution.arn.replace(":execution:", ":stateMachine:").rpartition(
                ":"
            )[0],
            "name": execution.arn.rpartition(":")[2],
            "status": execution.status,
            "input": json.dumps(execution.input),
            "error": execution.error or None,
            "cause": execution.cause or None,
        }
        event = {
            "detail-type": "Step Functions Execution Status Change",
            "source": "aws.states",
            "detail": detail,
        }
        # The rules of infra/triggers.py.
        if execution.status in UNWELL:
            if ":onboard:" in execution.arn:
                self.deliver("record_failure", event)
            self.deliver("reconcile", event)
        if self._is_queue_used():
            self.deliver("dispatch", event)

    def _is_queue_used(self) -> bool:
        """Whether ``dispatch`` would find anything to do; most schedules go without it."""
        rows = self.memory.tables["requests"]
        return (keys.GATE_ROW,) in rows or any("queue" in row for row in rows.values())

    # -- Functions --------------------------------------------------------------------------------

    def deliver(self, function: str, event: Any) -> None:
        """An asynchronous invocation: one that fails is repeated, as its target's policy says."""
        for tries_left in reversed(range(DELIVERIES)):
            try:
                self.invoke(function, event)
            except (ClientError, BotoCoreError, LimnerError):
                if not tries_left:
                    raise
            else:
                return

    def invoke(self, function: str, event: Any) -> Any:
        """Calls a function's real handler, JSON in and JSON out."""
        handler = handler_of(function)
        before, self.memory.writer = self.memory.writer, self.memory.writer or function
        with in_world(self):
            try:
                return json.loads(json.dumps(handler.handle(json.loads(json.dumps(event)), self)))
            finally:
                self.memory.writer = before

    @property
    def aws_request_id(self) -> str:
        """For the functions, whose context object is the world: another one each time."""
        self.invocations += 1
        return f"invocation-{self.invocations}"

    def get_remaining_time_in_millis(self) -> int:
        """For the functions, whose context object is the world."""
        return 60_000

    # -- What tasks call --------------------------------------------------------------------------

    def perform(self, resource: str, parameters: Any, execution: Execution) -> Any:
        """See ``machine.Services``."""
        integration = resource.partition(":::")[2]
        sdk = integration.startswith("aws-sdk:")
        service, _, action = integration.removeprefix("aws-sdk:").partition(":")
        prefix = (_SDK if sdk else _OPTIMIZED).get(service, service.capitalize())
        try:
            match service, action:
                case "lambda", "invoke":
                    return {"Payload": self._invoke_task(parameters)}
                case "sagemaker", "createTrainingJob.sync" | "createTrainingJob":
                    return self.create_training_job(**parameters, _execution=execution.arn)
                case "sagemaker", "describeTrainingJob":
                    return self.describe_training_job(**parameters)
                case "sagemaker", "stopTrainingJob":
                    return self.stop_training_job(**parameters)
                case "sns", "publish":
                    return self.publish(**parameters)
                case "s3", "copyObject":
                    return self.copy_object(**parameters)
                case "dynamodb", _:
                    return getattr(self.memory, _snake(action))(**parameters)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if service == "sagemaker" and code in ("ValidationException", "ThrottlingException"):
                code = "AmazonSageMakerException"
            suffix = "" if code.endswith("Exception") else "Exception"
            raise TaskFailedError(f"{prefix}.{code}{suffix}", str(error)) from error
        raise NotImplementedError(resource)

    def wait_for(self, parameters: Any) -> Any:
        """The end of a ``.sync`` task: the job's description, or its failure."""
        job = self.jobs[parameters["TrainingJobName"]]
        self.end_job(job)
        if job.status != "Completed":
            raise TaskFailedError("States.TaskFailed", json.dumps(job.describe()))
        return job.describe()

    def abandon(self, parameters: Any) -> None:
        """See ``machine.Services``."""
        job = self.jobs[parameters["TrainingJobName"]]
        if job.status in UNFINISHED:
            job.status = "Stopped"

    def _invoke_task(self, parameters: Mapping[str, Any]) -> Any:
        function, payload = parameters["FunctionName"], parameters["Payload"]
        if function == "smoke_test":
            return self._smoke_test(payload["target_model"])
        try:
            return self.invoke(function, payload)
        except ClientError as error:
            raise TaskFailedError("ClientError", str(error)) from error
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            told = {"errorMessage": str(error), "errorType": type(error).__name__}
            raise TaskFailedError(type(error).__name__, json.dumps(told)) from error

    def _smoke_test(self, target_model: str) -> dict[str, Any]:
        try:
            self.smoke_test(target_model)
        except TaskFailedError:
            raise
        if f"{keys.MODELS}/{target_model}" not in self.objects:
            raise TaskFailedError("ModelNotReadyError", "there is no artifact")
        self.served.add(target_model)
        return {"denoise_ms": 1.0}

    # -- SageMaker --------------------------------------------------------------------------------

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        name = request["TrainingJobName"]
        if name in self.jobs:
            raise _client_error("CreateTrainingJob", "ResourceInUse", "names must be unique")
        busy = sum(job.status in UNFINISHED for job in self.jobs.values())
        if self.quota is not None and busy >= self.quota:
            raise _client_error("CreateTrainingJob", "ResourceLimitExceeded", "the quota is full")
        self.jobs[name] = Job(request, started_ms=self.now_ms)
        return {"TrainingJobArn": f"{_JOB}/{name}"}

    def describe_training_job(self, *, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
        job = self._job("DescribeTrainingJob", TrainingJobName)
        if job.status in UNFINISHED:
            job.looks -= 1
            if job.looks < 0:
                self.end_job(job)
        return job.describe()

    def stop_training_job(self, *, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
        job = self._job("StopTrainingJob", TrainingJobName)
        if job.status not in UNFINISHED:
            raise _client_error("StopTrainingJob", "ValidationException", "it is not running")
        job.status = "Stopped"
        return {}

    def list_training_jobs(self, **wanted: Any) -> dict[str, Any]:
        return {
            "TrainingJobSummaries": [
                {
                    **job.describe(),
                    "CreationTime": datetime.fromtimestamp(job.started_ms / 1000, UTC),
                    "LastModifiedTime": datetime.fromtimestamp(job.started_ms / 1000, UTC),
                }
                for job in self.jobs.values()
                if wanted.get("NameContains", "") in job.name
                and wanted.get("StatusEquals", job.status) == job.status
            ]
        }

    def end_job(self, job: Job) -> None:
        """Lets a job that is at work come to its end."""
        if job.status not in UNFINISHED:
            return
        job.status, job.reason = self.outcome(job)
        channels = {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in job.request.get("InputDataConfig", ())
        }
        if "tasks" in channels:
            self._do_tasks(job, channels["tasks"])
        elif job.status == "Completed":
            request_id = job.request["Environment"]["LIMNER_REQUEST_ID"]
            self.objects[f"{keys.JOBS}/{job.name}/output/model.tar.gz"] = good_archive(
                request_id, job=job.name
            )

    def _do_tasks(self, job: Job, tasks: str) -> None:
        """The program of a batch: a job that completes has done all, another one what was swift."""
        out = job.request["CheckpointConfig"]["S3Uri"].partition(f"{BUCKET}/")[2].rstrip("/")
        place = tasks.partition(f"{BUCKET}/")[2].rstrip("/") + "/tasks.jsonl"
        for line in self.objects[place].decode().splitlines():
            task = json.loads(line)
            if job.status != "Completed" and task["user_id"] not in self.swift:
                continue
            folder = f"{out}/{task['request_id']}"
            spoiled = task["user_id"] in self.spoiled
            artifact = good_archive(task["request_id"], job=job.name)
            if not spoiled:
                self.objects[f"{folder}/model.tar.gz"] = artifact
            self.objects[f"{folder}/result.json"] = json.dumps(
                {
                    "schema_version": 1,
                    "request_id": task["request_id"],
                    "status": "failed" if spoiled else "trained",
                    "seconds": 1.0,
                    "metrics": {"steps": 500, "photos": 12, "share_seconds": 60.0},
                    "error": _SPOILED if spoiled else None,
                    "artifact_sha256": "" if spoiled else hashlib.sha256(artifact).hexdigest(),
                }
            ).encode()

    def _job(self, operation: str, name: str) -> Job:
        if name not in self.jobs:
            raise _client_error(operation, "ValidationException", "Requested resource not found.")
        return self.jobs[name]

    # -- S3 and SNS -------------------------------------------------------------------------------

    def copy_object(self, **call: Any) -> dict[str, Any]:
        key = call["CopySource"].partition("/")[2]
        if key not in self.objects:
            raise _client_error("CopyObject", "NoSuchKey", key)
        self.objects[call["Key"]] = self.objects[key]
        return {"CopyObjectResult": {}}

    def publish(self, **call: Any) -> dict[str, Any]:
        message = call["Message"]
        self.messages.append(json.loads(message) if isinstance(message, str) else message)
        return {"MessageId": "1"}

    def put_events(self, **call: Any) -> dict[str, Any]:
        """EventBridge: the rule of ``limner.onboarding.requested`` starts the machine."""
        for entry in call["Entries"]:
            self.events.append(entry)
            detail = json.loads(entry["Detail"])
            # The rule's target makes a name of its own for each event.
            self.request_start(f"event-{len(self.events)}", detail)
        return {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}

    def client(self, service: str) -> Any:
        """A client of a service for the functions."""
        match service:
            case "dynamodb":
                return self.memory
            case "stepfunctions":
                return _States(self)
            case "s3":
                return _S3(self)
            case "lambda":
                return _Lambda(self)
        return self


# -- Functions on the world of the moment ---------------------------------------------------------

_current: list[World] = []


@contextmanager
def in_world(world: World) -> Iterator[None]:
    """Leads the code's clients and its clocks to a world."""
    if _current:
        _current.append(world)
        try:
            yield
        finally:
            _current.pop()
        return
    _current.append(world)
    before = clock.time, times.datetime, metrics.emit
    clock.time, times.datetime = _Time, _Datetime  # type: ignore[assignment,misc]
    metrics.emit = lambda *_, **__: None
    try:
        yield
    finally:
        _current.pop()
        clock.time, times.datetime, metrics.emit = before  # type: ignore[misc]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the functions' log to itself; around many calls, for it costs more than some."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class Loss(Enum):
    """What becomes of the reply to a call of the code that was carried out."""

    NOTHING = auto()
    REPEATED = auto()
    """It is lost, and the SDK makes the call again."""
    RAISED = auto()
    """It is lost, and the SDK gives up."""
    REFUSED = auto()
    """It was throttled, and the SDK gives up: the call was not carried out."""


def client_of(service: str) -> Any:
    """A client that leads to the world of the moment."""
    return _Client(service)


class _Client:
    """A boto3 client to the functions; whose calls go to the world of the moment."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        world = _current[-1]
        method = getattr(world.client(self._service), name)
        if not callable(method) or world.watch is None:
            return method

        def call(*arguments: Any, **parameters: Any) -> Any:
            lost = world.watch(name) if world.watch is not None else Loss.NOTHING
            if lost is Loss.REFUSED:
                raise _client_error(name, "ThrottlingException", "Rate exceeded")
            answer = method(*arguments, **parameters)
            if lost is Loss.NOTHING:
                return answer
            for body in (parameters.get("Body"),):
                if hasattr(body, "seek"):
                    body.seek(0)
            if lost is Loss.REPEATED:
                return method(*arguments, **parameters)
            raise ReadTimeoutError(endpoint_url=f"https://{self._service}")

        return call


def has_function(name: str) -> bool:
    """Whether a function exists."""
    return (ROOT / "lambdas" / name / "handler.py").exists()


@cache
def handler_of(function: str) -> ModuleType:
    """A private copy of a function's handler, with clients that lead to the world."""
    path = ROOT / "lambdas" / function / "handler.py"
    spec = importlib.util.spec_from_file_location(f"faults_{function}_handler", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    with (
        patch.dict(os.environ, ENVIRONMENT),
        patch.object(boto3, "client", lambda service, **_: _Client(service)),
    ):
        spec.loader.exec_module(module)
    return module


class _Time:
    """``time`` to the functions."""

    @staticmethod
    def time() -> float:
        return _current[-1].now_ms / 1000

    @staticmethod
    def time_ns() -> int:
        return _current[-1].now_ms * 1_000_000

    @staticmethod
    def sleep(seconds: float) -> None:
        _current[-1].passes(seconds)


class _Datetime(datetime):
    """``datetime`` to the contracts."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(_current[-1].now_ms / 1000, tz)


class _States:
    """Step Functions to the functions."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start_execution(self, **call: Any) -> dict[str, Any]:
        name = call["stateMachineArn"].rpartition(":")[2]
        return self._world.request_start(call["name"], json.loads(call["input"]), name)

    def describe_execution(self, **call: Any) -> dict[str, Any]:
        execution = self._world.executions.get(call["executionArn"])
        if execution is None:
            raise _client_error("DescribeExecution", "ExecutionDoesNotExist", call["executionArn"])
        began = datetime.fromtimestamp(self._world.begun[execution.arn] / 1000, UTC)
        answer = {
            "executionArn": execution.arn,
            "name": execution.arn.rpartition(":")[2],
            "status": execution.status,
            "input": json.dumps(execution.input),
            "startDate": began,
        }
        if execution.status != "RUNNING":
            answer["stopDate"] = began
        if execution.error:
            answer |= {"error": execution.error, "cause": execution.cause}
        return answer

    def stop_execution(self, **call: Any) -> dict[str, Any]:
        execution = self._world.executions.get(call["executionArn"])
        if execution is None:
            raise _client_error("StopExecution", "ExecutionDoesNotExist", call["executionArn"])
        self._world.stop(execution, call.get("cause", ""))
        return {}


class _Lambda:
    """Lambda to the client."""

    def __init__(self, world: World) -> None:
        self._world = world

    def invoke(self, **call: Any) -> dict[str, Any]:
        answer = self._world.invoke(call["FunctionName"], json.loads(call["Payload"]))
        return {"Payload": io.BytesIO(json.dumps(answer).encode())}


class _S3:
    """S3 to the functions."""

    class exceptions:  # noqa: N801  # boto3's name
        NoSuchKey = ClientError

    def __init__(self, world: World) -> None:
        self._world = world

    def get_object(self, **call: Any) -> dict[str, Any]:
        content = self._world.objects.get(call["Key"])
        if content is None:
            raise _client_error("GetObject", "NoSuchKey", call["Key"])
        if "Range" in call:
            first, _, last = call["Range"].removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1]
        return {
            "Body": StreamingBody(io.BytesIO(content), len(content)),
            "ContentLength": len(content),
        }

    def head_object(self, **call: Any) -> dict[str, Any]:
        if call["Key"] not in self._world.objects:
            raise _client_error("HeadObject", "404", call["Key"])
        content = self._world.objects[call["Key"]]
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        kind = "image/png" if content.startswith(b"\x89PNG") else "application/octet-stream"
        return {"ContentLength": len(content), "ChecksumSHA256": checksum, "ContentType": kind}

    def delete_object(self, **call: Any) -> dict[str, Any]:
        self._world.objects.pop(call["Key"], None)
        return {}

    def generate_presigned_post(self, bucket: str, key: str, **_: Any) -> dict[str, Any]:
        return {"url": f"https://{bucket}", "fields": {"key": key}}

    def put_object(self, **call: Any) -> dict[str, Any]:
        body = call["Body"]
        content = body.encode() if isinstance(body, str) else body
        self._world.objects[call["Key"]] = content if isinstance(content, bytes) else content.read()
        return {}

    def list_objects_v2(self, **call: Any) -> dict[str, Any]:
        found = sorted(k for k in self._world.objects if k.startswith(call.get("Prefix", "")))
        contents = [{"Key": key, "Size": len(self._world.objects[key])} for key in found]
        return {"Contents": contents, "KeyCount": len(contents), "IsTruncated": False}

    def get_paginator(self, operation: str) -> Any:
        method = getattr(self, _snake(operation))
        return SimpleNamespace(
            paginate=lambda **call: iter(
                [method(**{k: v for k, v in call.items() if k != "PaginationConfig"})]
            )
        )


@lru_cache(maxsize=256)
def _iso(now_ms: int) -> str:
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@cache
def _snake(action: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in action)


def _client_error(operation: str, code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)
