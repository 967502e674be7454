"""Task states: TimeoutSeconds that stops the work, and trouble on the calls of tasks."""

from __future__ import annotations

import contextvars
import json
import re
import threading
from collections.abc import Callable
from typing import Any

from limner.local.clock import Clock
from limner.local.errors import ServiceError
from limner.local.json_types import Json
from limner.local.seams import Module
from limner.local.semantics.executions import Scope, current_scope, entered, unless_ended
from limner.local.trouble import Trouble

_INTEGRATION = re.compile(r"arn:aws:states:::(aws-sdk:)?([a-zA-Z0-9-]+):([a-zA-Z0-9]+)")
# Prefix of error names, by service (developer guide: the integration pages' own examples, and
# for aws-sdk the names of the SDK for Java). Limner's own machines meet only these.
_OPTIMIZED = {"dynamodb": "DynamoDB", "lambda": "Lambda", "sns": "SNS", "sqs": "SQS"}
_SDK = {"dynamodb": "DynamoDb", "s3": "S3", "lambda": "Lambda"}
_POLL_S = 0.05


def install(engine: Module, clock: Clock, trouble: Trouble) -> None:
    """Installs the corrections of this module."""
    engine._execute_task = _while_running(engine)
    engine._invoke_resource = _with_trouble(engine, trouble)
    engine._invoke_resource_with_timeout = _with_timeout(engine, clock)


def _while_running(engine: Module) -> Callable[..., Any]:
    """No task begins after the end of its execution, in no branch of a Parallel or Map."""
    execute = engine._execute_task

    def execute_task(*arguments: Json) -> Json:
        unless_ended(engine)
        return execute(*arguments)

    return execute_task


def _with_timeout(engine: Module, clock: Clock) -> Callable[[str, Any, float], Any]:
    """TimeoutSeconds of ``.sync`` tasks follows the clock, and ends the job that they wait for.

    Amazon States Language: "If the state runs longer than the specified timeout, or if more time
    elapses between heartbeats than the specified heartbeat, then the interpreter can fail the
    state with a States.Timeout error". Developer guide, "Run a Job (.sync)": "If a task that uses
    this pattern is aborted, Step Functions makes a best-effort attempt to cancel the job."
    """
    wall = Clock()

    def invoke_with_timeout(resource: str, data: Json, timeout: float) -> Json:
        outer = current_scope()
        scope = Scope(outer.execution if outer else {"status": "RUNNING"}, outer)
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                with entered(scope):
                    outcome.append(engine._invoke_resource(resource, data))
            except Exception as error:  # noqa: BLE001  # handed to the waiting thread
                failure.append(error)

        # ministack finds account and region in context variables.
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(work,), name="task", daemon=True
        )
        thread.start()
        # Calls take their own few seconds, whatever the clock of the jobs says.
        deadline = (clock if resource.endswith(".sync") else wall).deadline(timeout)
        while thread.is_alive():
            if deadline.passed():
                scope.expired.set()
                raise engine._ExecutionError(
                    "States.Timeout", f"Task timed out after {timeout} seconds"
                )
            thread.join(_POLL_S)
        if failure:
            raise failure[0]
        return outcome[0]

    return invoke_with_timeout


def _with_trouble(engine: Module, trouble: Trouble) -> Callable[[str, Any], Any]:
    """Faults strike the calls of task states, under the error names that ASL sees.

    SageMaker's calls go through the laptop's own API, which strikes by itself.
    """
    invoke = engine._invoke_resource

    def invoke_resource(resource: str, data: Json) -> Json:
        operation = _INTEGRATION.match(resource)
        if operation is None or operation[2] == "sagemaker":
            return invoke(resource, data)
        names = _SDK if operation[1] else _OPTIMIZED
        try:
            return trouble.call(
                f"{operation[2]}:{operation[3]}",
                json.dumps(data, default=str),
                lambda: invoke(resource, data),
            )
        except ServiceError as error:
            prefix = names.get(operation[2], operation[2].capitalize())
            suffix = "" if error.code.endswith("Exception") else "Exception"
            raise engine._ExecutionError(f"{prefix}.{error.code}{suffix}", error.message) from error

    return invoke_resource
