"""SageMaker's two APIs on ministack's port: JSON 1.1 actions, and InvokeEndpoint."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from limner.local.errors import ServiceError, validation
from limner.local.sagemaker import requests
from limner.local.sagemaker.endpoints import Endpoints
from limner.local.sagemaker.jobs import TrainingJobs
from limner.local.trouble import Trouble

HttpReply = tuple[int, dict[str, str], bytes]
_INVOCATIONS = re.compile(r"/endpoints/([^/]+)/invocations")
_JSON = "application/x-amz-json-1.1"


class SageMakerApi:
    """Dispatches requests; used by HTTP and by the ASL executor alike.

    Args:
        jobs: Training jobs.
        endpoints: Models, configs and endpoints.
        trouble: Strikes each control-plane call and InvokeEndpoint.
    """

    def __init__(self, jobs: TrainingJobs, endpoints: Endpoints, trouble: Trouble) -> None:
        self._endpoints = endpoints
        self._trouble = trouble
        self._actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "CreateTrainingJob": jobs.create,
            "DescribeTrainingJob": jobs.describe,
            "StopTrainingJob": jobs.stop,
            "UpdateTrainingJob": jobs.update,
            "DeleteTrainingJob": jobs.delete,
            "ListTrainingJobs": jobs.list,
            "CreateModel": endpoints.create_model,
            "DescribeModel": endpoints.describe_model,
            "DeleteModel": endpoints.delete_model,
            "CreateEndpointConfig": endpoints.create_endpoint_config,
            "DescribeEndpointConfig": endpoints.describe_endpoint_config,
            "DeleteEndpointConfig": endpoints.delete_endpoint_config,
            "CreateEndpoint": endpoints.create_endpoint,
            "DescribeEndpoint": endpoints.describe_endpoint,
            "UpdateEndpoint": endpoints.update_endpoint,
            "DeleteEndpoint": endpoints.delete_endpoint,
            "ListEndpoints": endpoints.list_endpoints,
        }

    def execute(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        """Executes one action of the control plane.

        Raises:
            ServiceError: With AWS's code; trouble included.
        """
        perform = self._actions.get(action)
        if perform is None:
            raise _not_here(action)
        return self._trouble.call(
            f"sagemaker:{action}", json.dumps(request), lambda: perform(request)
        )

    async def handle(
        self,
        method: str,  # noqa: ARG002  # ministack's signature of a handler
        path: str,
        headers: dict[str, str],
        body: bytes,
        query: dict[str, list[str]],  # noqa: ARG002
    ) -> HttpReply:
        """The handler for ministack; all work is done off the event loop."""
        invocation = _INVOCATIONS.fullmatch(path)
        if invocation:
            name = unquote(invocation[1])
            return await asyncio.to_thread(self._invoke, name, headers, body)
        action = headers.get("x-amz-target", "").rpartition(".")[2]
        return await asyncio.to_thread(self._execute, action, body)

    def _execute(self, action: str, body: bytes) -> HttpReply:
        try:
            request = json.loads(body or b"{}")
            if not isinstance(request, dict):
                raise ServiceError("SerializationException", "The body must be a JSON object.")
            answer = self.execute(action, request)
        except json.JSONDecodeError:
            error = ServiceError("SerializationException", "The body is not JSON.")
            return _error(error, _JSON)
        except ServiceError as error:
            return _error(error, _JSON)
        return 200, {"Content-Type": _JSON}, json.dumps(answer).encode()

    def _invoke(self, name: str, headers: dict[str, str], body: bytes) -> HttpReply:
        target = headers.get("x-amzn-sagemaker-target-model", "")
        try:
            reply, variant = self._trouble.call(
                "sagemaker:InvokeEndpoint",
                json.dumps({"EndpointName": name, "TargetModel": target}),
                lambda: self._endpoints.invoke(
                    name,
                    target,
                    body,
                    headers.get("content-type", "application/json"),
                    headers.get("accept", "*/*"),
                ),
            )
        except ServiceError as error:
            return _error(error, "application/json")
        # In small letters, or ministack "corrects" the type to the control plane's.
        answer = {
            "content-type": reply.content_type,
            "x-Amzn-Invoked-Production-Variant": variant,
        }
        return 200, answer, reply.body


def _not_here(action: str) -> ServiceError:
    if action and requests.known_operation(action):
        return validation(f"The laptop does not have SageMaker's operation {action}.")
    return ServiceError("UnknownOperationException", f"There is no operation {action}.")


def _error(error: ServiceError, content_type: str) -> HttpReply:
    body = {"__type": error.code, "message": error.message, "Message": error.message}
    headers = {"Content-Type": content_type, "x-amzn-ErrorType": error.code}
    return error.status, headers, json.dumps({**body, **error.members}).encode()
