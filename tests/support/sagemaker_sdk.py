"""A stand-in for AWS's SageMaker SDK 3, as far as a training job goes.

Names, fields and what is refused are those of sagemaker-train 1.27.0 and sagemaker-core 2.27.0
(``sagemaker`` 3.27.0); the SDK itself weighs a gigabyte. ``ModelTrainer`` makes its name as the SDK
does and writes down the request that the SDK would send, in CreateTrainingJob's words.
"""
# ruff: noqa: ARG002 - the signatures are the SDK's

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Compute(Config):
    instance_type: str | None = None
    instance_count: int | None = None
    volume_size_in_gb: int | None = 30
    volume_kms_key_id: str | None = None
    keep_alive_period_in_seconds: int | None = None
    instance_groups: list[Any] | None = None
    training_plan_arn: str | None = None
    instance_placement_config: Any = None
    instance_preferences: list[Any] | None = None
    enable_managed_spot_training: bool | None = None


class Networking(Config):
    security_group_ids: list[str] | None = None
    subnets: list[str] | None = None
    enable_network_isolation: bool | None = None
    enable_inter_container_traffic_encryption: bool | None = None


class StoppingCondition(Config):
    max_runtime_in_seconds: int | None = None
    max_wait_time_in_seconds: int | None = None
    max_pending_time_in_seconds: int | None = None


class InputData(Config):
    channel_name: str | None = None
    data_source: str | None = None
    content_type: str | None = None


class OutputDataConfig(Config):
    s3_output_path: str | None = None
    kms_key_id: str | None = None
    compression_type: str | None = None


class CheckpointConfig(Config):
    s3_uri: str | None = None
    local_path: str | None = "/opt/ml/checkpoints"


class MetricDefinition(Config):
    name: str
    regex: str


class RetryStrategy(Config):
    maximum_retry_attempts: int


class SageMakerCoreError(Exception):
    """The base of the SDK's own errors."""


class Session:
    def __init__(self, boto_session: Any = None, default_bucket: str | None = None) -> None:
        self.boto_session = boto_session


@dataclass
class TrainingJob:
    training_job_name: str
    ending: Callable[[str], None]

    def wait(self, poll: int = 5, timeout: int | None = None, logs: bool | None = False) -> None:
        # The SDK draws a panel on stdout while it waits.
        sys.stdout.write("Wait Log Panel\n")
        self.ending(self.training_job_name)


@dataclass
class Sdk:
    """What happened to the stand-in.

    Attributes:
        requests: The requests that were sent.
        ending: Called when a job is waited for; raises what the SDK would raise.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    ending: Callable[[str], None] = lambda _: None

    def fail(self, reason: str) -> None:
        """Lets jobs fail, in the words of the SDK's FailedStatusError."""

        def ending(_: str) -> None:
            raise SageMakerCoreError(
                "Encountered unexpected failed state while waiting for TrainingJob. "
                f"Final Resource State: Failed. Failure Reason: {reason}"
            )

        self.ending = ending


def install(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """Makes the stand-in what ``import sagemaker`` finds."""
    sdk = Sdk()

    class ModelTrainer(BaseModel):
        model_config = ConfigDict(
            arbitrary_types_allowed=True, validate_assignment=True, extra="forbid"
        )
        training_mode: Any = None
        sagemaker_session: Session | None = None
        role: str | None = None
        base_job_name: str | None = None
        input_s3_key_prefix: str | None = None
        source_code: Any = None
        distributed: Any = None
        compute: Compute | None = None
        networking: Networking | None = None
        stopping_condition: StoppingCondition | None = None
        training_image: str | None = None
        training_image_config: Any = None
        algorithm_name: str | None = None
        output_data_config: OutputDataConfig | None = None
        input_data_config: list[InputData] | None = None
        checkpoint_config: CheckpointConfig | None = None
        training_input_mode: str | None = "File"
        environment: dict[str, str] | None = {}
        hyperparameters: dict[str, Any] | str | None = {}
        tags: list[Any] | None = None
        local_container_root: str | None = None
        model_package_config: Any = None

        _latest_training_job: TrainingJob | None = PrivateAttr(default=None)
        _retry_strategy: RetryStrategy | None = PrivateAttr(default=None)
        _metric_definitions: list[MetricDefinition] | None = PrivateAttr(default=None)

        def model_post_init(self, context: Any, /) -> None:
            if os.environ.get("SAGEMAKER_VALIDATE_ROLE") != "false":
                raise ValueError("RoleValidationError: the role may not read every bucket")

        def with_metric_definitions(self, metric_definitions: list[Any]) -> ModelTrainer:
            self._metric_definitions = metric_definitions
            return self

        def with_retry_strategy(self, retry_strategy: RetryStrategy) -> ModelTrainer:
            self._retry_strategy = retry_strategy
            return self

        def train(
            self,
            input_data_config: list[InputData] | None = None,
            wait: bool | None = True,
            logs: bool | None = True,
            dry_run: bool = False,
        ) -> None:
            job = TrainingJob(f"{self.base_job_name}-20261125190000", sdk.ending)
            sdk.requests.append(_request(self, job.training_job_name))
            self._latest_training_job = job
            if wait:
                job.wait(logs=logs)

    _modules(monkeypatch, ModelTrainer)
    return sdk


def _modules(monkeypatch: pytest.MonkeyPatch, model_trainer: type) -> None:
    shapes = (
        Compute,
        Networking,
        StoppingCondition,
        InputData,
        OutputDataConfig,
        CheckpointConfig,
        MetricDefinition,
        RetryStrategy,
    )
    contents: dict[str, dict[str, object]] = {
        "sagemaker": {},
        "sagemaker.train": {"ModelTrainer": model_trainer},
        "sagemaker.core": {},
        "sagemaker.core.helper": {},
        "sagemaker.core.helper.session_helper": {"Session": Session},
        "sagemaker.core.training": {},
        "sagemaker.core.training.configs": {shape.__name__: shape for shape in shapes},
        "sagemaker.core.utils": {},
        "sagemaker.core.utils.exceptions": {"SageMakerCoreError": SageMakerCoreError},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _request(trainer: Any, name: str) -> dict[str, Any]:
    """The CreateTrainingJob request of a trainer."""
    compute, network = trainer.compute, trainer.networking
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": trainer.training_image,
            "TrainingInputMode": trainer.training_input_mode,
            "MetricDefinitions": [
                {"Name": metric.name, "Regex": metric.regex}
                for metric in trainer._metric_definitions
            ],
        },
        "HyperParameters": trainer.hyperparameters,
        "InputDataConfig": [
            {
                "ChannelName": channel.channel_name,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3DataDistributionType": "FullyReplicated",
                        "S3Uri": channel.data_source,
                    }
                },
            }
            for channel in trainer.input_data_config
        ],
        "OutputDataConfig": {
            "S3OutputPath": trainer.output_data_config.s3_output_path,
            "KmsKeyId": trainer.output_data_config.kms_key_id,
        },
        "CheckpointConfig": {
            "S3Uri": trainer.checkpoint_config.s3_uri,
            "LocalPath": trainer.checkpoint_config.local_path,
        },
        "ResourceConfig": {
            "InstanceCount": compute.instance_count,
            "InstanceType": compute.instance_type,
            "VolumeSizeInGB": compute.volume_size_in_gb,
            "VolumeKmsKeyId": compute.volume_kms_key_id,
            "KeepAlivePeriodInSeconds": compute.keep_alive_period_in_seconds,
        },
        "StoppingCondition": {
            "MaxRuntimeInSeconds": trainer.stopping_condition.max_runtime_in_seconds,
            "MaxWaitTimeInSeconds": trainer.stopping_condition.max_wait_time_in_seconds,
        },
        "RetryStrategy": trainer._retry_strategy
        and {"MaximumRetryAttempts": trainer._retry_strategy.maximum_retry_attempts},
        "EnableNetworkIsolation": network.enable_network_isolation,
        "EnableManagedSpotTraining": compute.enable_managed_spot_training,
        "VpcConfig": network.subnets
        and {"SecurityGroupIds": network.security_group_ids, "Subnets": network.subnets},
        "Environment": trainer.environment,
        "RoleArn": trainer.role,
    }
    return _without_none(request)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return value
