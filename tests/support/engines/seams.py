"""The seams into moto 5.2.5: what its executor lacks, and its clock.

moto executes ASL, but has no ``sagemaker`` integration, really sleeps, parses the definition anew
at every start, and tells nobody that an execution has ended. ``installed`` changes these for as
long as a test lasts; each change is described where it is made. Nothing of ministack or of
``limner.local.semantics`` is used: two engines that shared code would share its mistakes.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cache
from typing import Any
from unittest.mock import patch

from botocore.client import BaseClient
from botocore.exceptions import ClientError
from jsonpath_ng.ext import parse as jsonpath_parse
from moto.stepfunctions.parser import models as parser_models
from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import (
    CustomErrorName,
)
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.common.timeouts import timeout
from moto.stepfunctions.parser.asl.component.state.exec.state_task import state_task_factory
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_aws_sdk,
    state_task_service_callback,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.resource import (
    ResourceCondition,
)
from moto.stepfunctions.parser.asl.component.state.wait.wait_function import wait_function
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.parse import asl_parser
from moto.stepfunctions.parser.asl.utils import json_path
from moto.stepfunctions.parser.asl.utils.boto_client import boto_client_for
from moto.stepfunctions.parser.backend import execution

from tests.support.engines.sagemaker import UNFINISHED
from tests.support.engines.world import Sleep, World

# Modelled errors are named after themselves, all others share a general name. This is our reading
# of AWS, told a second time, independently of limner.local.
_MODELLED = {
    "ResourceInUse": "ResourceInUseException",
    "ResourceLimitExceeded": "ResourceLimitExceededException",
    "ResourceNotFound": "ResourceNotFoundException",
}
_LOOK_EVERY_S = 0.01
_LONGEST_CALL_S = 600
# Parsing takes moto half a second; executions get a copy of what was parsed, as if it were theirs.
_PARSED: dict[str, Any] = {}


@contextmanager
def installed(world: World) -> Iterator[None]:
    """Changes moto for one test."""
    send: Any = BaseClient._make_api_call
    with ExitStack() as stack:

        def replace(target: Any, name: str, new: Any) -> None:
            stack.enter_context(patch.object(target, name, new))

        def make_api_call(client: Any, operation: str, request: dict[str, Any]) -> Any:
            return world.call(send, client, operation, request)

        replace(BaseClient, "_make_api_call", make_api_call)
        replace(asl_parser.AmazonStateLanguageParser, "parse", staticmethod(_parse_once()))
        replace(json_path, "parse", _parse_path)
        # Each start parses, too, and says the same.
        backend = parser_models.StepFunctionsParserBackend
        replace(backend, "_validate_definition", staticmethod(_validate_once()))
        replace(state_task_factory, "state_task_service_for", _service_for())
        replace(state_task_service_callback, "_DELAY_SECONDS_SYNC_CONDITION_CHECK", _LOOK_EVERY_S)
        names = {"sagemaker": "SageMaker", "s3": "S3"}
        stack.enter_context(patch.dict(state_task_service_aws_sdk._SERVICE_ERROR_NAMES, names))
        replace(
            state_task_service_aws_sdk.StateTaskServiceAwsSdk,
            "_eval_service_task",
            _with_json_times(),
        )
        clock = _RecordingTime(world)
        replace(retrier_decl, "time", clock)
        replace(retrier_decl.RetrierDecl, "_eval_body", _recorded_retry(clock))
        replace(wait_function.WaitFunction, "_wait_interval", _recorded_wait(world))
        replace(timeout.Timeout, "_eval_body", _scaled_timeout(world))
        replace(execution.BaseExecutionWorkerCommunication, "terminated", _announced_end(world))
        yield


class CreateTrainingJob(state_task_service_callback.StateTaskServiceCallback):
    """``sagemaker:createTrainingJob`` and its ``.sync``, which moto does not have."""

    def __init__(self) -> None:
        # WaitForTaskToken must be among them, or moto fails after the task has ended.
        patterns = {ResourceCondition.Sync, ResourceCondition.WaitForTaskToken}
        super().__init__(supported_integration_patterns=patterns)

    def _get_supported_parameters(self) -> set[str]:
        return set()

    def _eval_service_task(
        self,
        env: Any,
        resource_runtime_part: Any,
        normalised_parameters: Any,
        state_credentials: Any,  # noqa: ARG002 - moto's signature
    ) -> None:
        client = boto_client_for(service="sagemaker", region=resource_runtime_part.region)
        answer = client.create_training_job(**normalised_parameters)
        answer.pop("ResponseMetadata", None)
        env.stack.append(answer)

    def _build_sync_resolver(
        self,
        env: Any,
        resource_runtime_part: Any,
        normalised_parameters: Any,
        state_credentials: Any,  # noqa: ARG002 - moto's signature
    ) -> Callable[[], Any]:
        env.stack.pop()
        client = boto_client_for(service="sagemaker", region=resource_runtime_part.region)
        self._job = normalised_parameters["TrainingJobName"]
        self._client = client

        def look() -> Any:
            job = client.describe_training_job(TrainingJobName=self._job)
            job.pop("ResponseMetadata", None)
            if job["TrainingJobStatus"] in UNFINISHED:
                return None
            described = json.loads(json.dumps(job, default=_milliseconds))
            if job["TrainingJobStatus"] == "Completed":
                return described
            name = StatesErrorName(typ=StatesErrorNameType.StatesTaskFailed)
            raise FailureEventException(self._failure(env, name, json.dumps(described)))

        return look

    def _eval_sync(self, *arguments: Any, **options: Any) -> Any:
        result = super()._eval_sync(*arguments, **options)
        if result is None:  # the task's time is up, or somebody stopped the execution
            self._client.stop_training_job(TrainingJobName=self._job)
        return result

    def _from_error(self, env: Any, ex: Exception) -> FailureEvent:
        if not isinstance(ex, ClientError):
            return super()._from_error(env=env, ex=ex)
        error = ex.response["Error"]
        name = _MODELLED.get(error["Code"], "AmazonSageMakerException")
        cause = f"{error['Message']} (Service: AmazonSageMaker; Error Code: {error['Code']})"
        return self._failure(env, CustomErrorName(f"SageMaker.{name}"), cause)

    def _failure(self, env: Any, name: Any, cause: str) -> FailureEvent:
        return FailureEvent(
            env=env,
            error_name=name,
            event_type=HistoryEventType.TaskFailed,
            event_details=EventDetails(
                taskFailedEventDetails=TaskFailedEventDetails(
                    resource=self._get_sfn_resource(),
                    resourceType=self._get_sfn_resource_type(),
                    error=name.error_name,
                    cause=cause,
                )
            ),
        )


def _service_for() -> Callable[[str], Any]:
    before = state_task_factory.state_task_service_for

    def state_task_service_for(service_name: str) -> Any:
        return CreateTrainingJob() if service_name == "sagemaker" else before(service_name)

    return state_task_service_for


def _parse_once() -> Callable[[str], Any]:
    parse = asl_parser.AmazonStateLanguageParser.parse

    def parse_once(definition: str) -> Any:
        if definition not in _PARSED:
            _PARSED[definition] = parse(definition)
        program, tree = _PARSED[definition]
        return copy.deepcopy(program), tree

    return parse_once


def _validate_once() -> Callable[[str], None]:
    validate = parser_models.StepFunctionsParserBackend._validate_definition

    def validate_once(definition: str) -> None:
        if definition not in _PARSED:
            validate(definition)

    return validate_once


@cache
def _parse_path(text: str) -> Any:
    """A JSONPath, parsed once: moto makes its parser's tables anew for each."""
    return jsonpath_parse(text)


def _with_json_times() -> Callable[..., None]:
    """A datetime in the answer of an aws-sdk task breaks moto's DescribeExecution."""
    evaluate = state_task_service_aws_sdk.StateTaskServiceAwsSdk._eval_service_task

    def eval_service_task(self: Any, env: Any, *arguments: Any, **options: Any) -> None:
        evaluate(self, env, *arguments, **options)
        env.stack[-1] = json.loads(json.dumps(env.stack[-1], default=_iso))

    return eval_service_task


class _RecordingTime:
    """Stands for the module ``time`` where moto sleeps before a retry."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._here = threading.local()

    def in_state(self, name: str) -> None:
        """Says which state this thread executes."""
        self._here.state = name

    def sleep(self, seconds: float) -> None:
        self._world.retries.append(Sleep(self._here.state, seconds))


def _recorded_retry(clock: _RecordingTime) -> Callable[..., None]:
    evaluate = retrier_decl.RetrierDecl._eval_body

    def eval_body(self: Any, env: Any) -> None:
        clock.in_state(_state_name(env))
        evaluate(self, env)

    return eval_body


def _state_name(env: Any) -> str:
    name: str = env.states.context_object.context_object_data["State"]["Name"]
    return name


def _recorded_wait(world: World) -> Callable[..., None]:
    def wait_interval(self: Any, env: Any, wait_seconds: float) -> None:
        world.waits.append(Sleep(_state_name(env), wait_seconds))
        time.sleep(0)  # others may run

    return wait_interval


def _scaled_timeout(world: World) -> Callable[..., None]:
    def eval_body(self: Any, env: Any) -> None:
        seconds = self._eval_seconds(env=env)
        # Only tasks that wait for a job: calls take the time that they take.
        env.stack.append(seconds * world.timeouts if seconds > _LONGEST_CALL_S else seconds)

    return eval_body


def _announced_end(world: World) -> Callable[..., None]:
    """moto tells nobody that an execution has ended; AWS tells EventBridge."""
    reflect = execution.BaseExecutionWorkerCommunication.terminated

    def terminated(self: Any) -> None:
        reflect(self)
        world.on_end(self.execution)

    return terminated


def _milliseconds(value: object) -> int:
    assert isinstance(value, datetime), value
    return int(value.timestamp() * 1000)


def _iso(value: object) -> str:
    assert isinstance(value, datetime), value
    return value.isoformat().replace("+00:00", "Z")
