"""``sagemaker:createTrainingJob`` and its ``.sync`` in the ASL executor.

Step Functions developer guide, "Create and manage Amazon SageMaker AI jobs": with ``.sync`` the
task waits for the job's end and returns the job's description; a job that does not complete is
States.TaskFailed with that description as Cause. AWS's own samples retry
``SageMaker.AmazonSageMakerException`` and ``SageMaker.ResourceLimitExceededException``: modelled
errors are named ``SageMaker.<Code>Exception``, all others share the general name and carry their
code in the Cause.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from limner.local.errors import ServiceError
from limner.local.sagemaker.api import SageMakerApi
from limner.local.sagemaker.jobs import TrainingJobs
from limner.local.sagemaker.records import is_over, with_millisecond_times
from limner.local.seams import Module
from limner.local.semantics.executions import current_scope

CREATE_TRAINING_JOB = "arn:aws:states:::sagemaker:createTrainingJob"
_MODELLED = {
    "ResourceInUse": "ResourceInUseException",
    "ResourceLimitExceeded": "ResourceLimitExceededException",
    "ResourceNotFound": "ResourceNotFoundException",
}
_GENERAL = "AmazonSageMakerException"
# The same for aws-sdk tasks, which take the class names of the SDK for Java.
_SDK_GENERAL = "SageMakerException"
_LOOK_UP_S = 0.1


def install(engine: Module, api: SageMakerApi, jobs: TrainingJobs) -> None:
    """Registers the integrations with ministack's executor."""
    engine._SERVICE_DISPATCH[CREATE_TRAINING_JOB] = _create_training_job(engine, api, jobs)
    engine._AWS_SDK_SERVICE_MAP["sagemaker"] = {"target_prefix": "SageMaker", "protocol": "json"}
    engine._AWS_SDK_ERROR_PREFIX["sagemaker"] = "SageMaker"
    engine._AWS_SDK_ERROR_CODE_OVERRIDES["sagemaker"] = {
        **_MODELLED,
        "ThrottlingException": _SDK_GENERAL,
        "ValidationException": _SDK_GENERAL,
        "InternalServerError": _SDK_GENERAL,
    }


def _create_training_job(
    engine: Module, api: SageMakerApi, jobs: TrainingJobs
) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    def create_training_job(resource: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            created = api.execute("CreateTrainingJob", request)
        except ServiceError as error:
            name = _MODELLED.get(error.code, _GENERAL)
            raise engine._ExecutionError(f"SageMaker.{name}", _cause(error)) from error
        if not resource.endswith(".sync"):
            return created
        name = request["TrainingJobName"]
        _wait(engine, jobs, name)
        record = jobs.describe({"TrainingJobName": name})
        described: dict[str, Any] = with_millisecond_times(record)
        if record["TrainingJobStatus"] != "Completed":
            raise engine._ExecutionError("States.TaskFailed", json.dumps(described))
        return described

    return create_training_job


def _wait(engine: Module, jobs: TrainingJobs, name: str) -> None:
    """Waits for the end of the job; stops it when its task is not wanted any more."""
    scope = current_scope()
    while not jobs.wait(name, _LOOK_UP_S):
        if scope is not None and scope.ended():
            if not is_over(jobs.describe({"TrainingJobName": name})):
                jobs.stop({"TrainingJobName": name})
            raise engine._ExecutionError("Limner.ExecutionEnded", name)


def _cause(error: ServiceError) -> str:
    return (
        f"{error.message} (Service: AmazonSageMaker; Status Code: {error.status}; "
        f"Error Code: {error.code}; Request ID: local; Proxy: null)"
    )
