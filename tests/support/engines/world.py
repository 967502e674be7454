"""Who answers which AWS call of one test: SageMaker and Lambda by script, everything else moto.

``World.call`` stands where botocore sends a call (``BaseClient._make_api_call``), so it sees the
calls of the machine, of our functions and of the test alike, and puts the same faults on them as
the laptop does.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from limner.local.errors import ServiceError
from limner.local.trouble import Trouble
from tests.support.engines.functions import Functions
from tests.support.engines.sagemaker import Endpoint, Training

Call = Callable[[Any, str, dict[str, Any]], Any]
# The names that faults know, where botocore has another.
_SERVICES = {"sagemaker-runtime": "sagemaker", "stepfunctions": "states"}


@dataclass(frozen=True)
class Sleep:
    """A delay that the engine asked for and did not get.

    Attributes:
        state: The state that waited or was to be retried.
        seconds: How long, after jitter.
    """

    state: str
    seconds: float


@dataclass
class World:
    """Everything behind the machine, for one test.

    Attributes:
        trouble: What goes wrong.
        training: Training jobs.
        endpoint: The endpoint.
        functions: Our functions.
        on_end: Called with the facts of an execution that has ended.
        timeouts: Real seconds per second of TimeoutSeconds.
        retries: Delays of retries, in order.
        waits: Delays of Wait states, in order.
    """

    trouble: Trouble
    training: Training
    endpoint: Endpoint
    functions: Functions
    on_end: Callable[[Any], None]
    timeouts: float = 1.0
    retries: list[Sleep] = field(default_factory=list)
    waits: list[Sleep] = field(default_factory=list)
    # moto copies whole tables and puts them back, and its own engine calls it from many threads.
    _moto: AbstractContextManager[bool] = field(default_factory=threading.RLock)

    def call(self, original: Call, client: Any, operation: str, request: dict[str, Any]) -> Any:
        """Answers one call of any client."""
        service = client.meta.service_model.service_name
        known = f"{_SERVICES.get(service, service)}:{operation}"
        try:
            return self.trouble.call(
                known,
                json.dumps(request, default=_text),
                lambda: self._answer(original, client, service, operation, request),
            )
        except ServiceError as error:
            raise _client_error(client, operation, error) from error

    def _answer(
        self, original: Call, client: Any, service: str, operation: str, request: dict[str, Any]
    ) -> Any:
        match service, operation:
            case "sagemaker", "CreateTrainingJob":
                answer = self.training.create_training_job(request)
            case "sagemaker", "DescribeTrainingJob":
                answer = self.training.describe_training_job(request)
            case "sagemaker", "ListTrainingJobs":
                answer = self.training.list_training_jobs(request)
            case "sagemaker", "StopTrainingJob":
                answer = self.training.stop_training_job(request)
            case "sagemaker-runtime", "InvokeEndpoint":
                answer = self.endpoint.invoke_endpoint(request)
            case "lambda", "Invoke":
                answer = self._invoke(request)
            case _:
                with self._moto:
                    return original(client, operation, request)
        return {**answer, "ResponseMetadata": {"HTTPStatusCode": 200, "RequestId": "moto"}}

    def _invoke(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["FunctionName"].rpartition(":")[2]
        failed: dict[str, str] = {}
        try:
            body = self.functions.call(name, json.loads(request.get("Payload") or b"{}"))
        except Exception as error:  # noqa: BLE001 - Lambda reports whatever a function raises
            failed = {"FunctionError": "Unhandled"}
            body = {"errorType": type(error).__name__, "errorMessage": str(error)}
        return {"StatusCode": 200, "Payload": io.BytesIO(json.dumps(body).encode()), **failed}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _client_error(client: Any, operation: str, error: ServiceError) -> Exception:
    kind = client.exceptions.from_code(error.code)
    made: Exception = kind(
        {
            "Error": {"Code": error.code, "Message": error.message},
            "ResponseMetadata": {"HTTPStatusCode": error.status, "RequestId": "moto"},
            **error.members,
        },
        operation,
    )
    return made
