"""Training jobs: the API side. Each accepted job then lives in ``lifecycle``."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from typing import Any

from limner.local.errors import ServiceError, validation
from limner.local.objects import Location
from limner.local.sagemaker import channels, requests
from limner.local.sagemaker.arns import TRAINING_JOB, arn
from limner.local.sagemaker.fleet import MAX_INSTANCES
from limner.local.sagemaker.lifecycle import JobRun, Platform
from limner.local.sagemaker.limits import DEFAULT_MAX_RUNTIME_S
from limner.local.sagemaker.pages import page
from limner.local.sagemaker.pools import is_available, keep_alive_s
from limner.local.sagemaker.records import is_over, new_record, transition
from limner.local.sagemaker.store import Record

_CHECKPOINTS = "/opt/ml/checkpoints"
_CLOSE_WITHIN_S = 5
_SUMMARY = (
    "TrainingJobName",
    "TrainingJobArn",
    "CreationTime",
    "TrainingEndTime",
    "LastModifiedTime",
    "TrainingJobStatus",
    "SecondaryStatus",
)
INTERRUPTED = (
    "InternalServerError: AWS on this laptop was stopped while the job ran. Onboard again."
)


class TrainingJobs:
    """All training jobs of the laptop; thread-safe.

    Jobs that ran when the laptop stopped are failed here, honestly: their processes are gone.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._creating = threading.Lock()
        self._runs: dict[str, JobRun] = {}
        for record in platform.store.all():
            if not is_over(record):
                with platform.store.change(record["TrainingJobName"]) as interrupted:
                    transition(interrupted, "Failed", "Failed", INTERRUPTED)

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateTrainingJob."""
        requests.check("CreateTrainingJob", request)
        _check_supported(request)
        self._platform.images.command(request["AlgorithmSpecification"]["TrainingImage"])
        name = request["TrainingJobName"]
        with self._creating:
            if self._platform.store.get(name) is not None:
                raise ServiceError(
                    "ResourceInUse",
                    "Training job names must be unique within an AWS account and region, and a "
                    f"training job with this name already exists ({arn(TRAINING_JOB, name)})",
                )
            is_warm = self._platform.pools.take(request) is not None
            if not is_warm:  # or the instances are counted already
                self._check_quota(request["ResourceConfig"])
            # Who finds the record also finds the run.
            run = self._runs[name] = JobRun(name, self._platform, is_warm)
            self._platform.store.add(name, new_record(request))
            run.start()
        return {"TrainingJobArn": arn(TRAINING_JOB, name)}

    def describe(self, request: dict[str, Any]) -> Record:
        """DescribeTrainingJob."""
        requests.check("DescribeTrainingJob", request)
        self._platform.pools.expire()
        record = self._platform.store.get(request["TrainingJobName"])
        if record is None:
            raise validation("Requested resource not found.")
        return record

    def stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """StopTrainingJob."""
        requests.check("StopTrainingJob", request)
        record = self.describe(request)
        if is_over(record):
            raise validation(
                "The request was rejected because the training job is in status "
                f"{record['TrainingJobStatus']}."
            )
        self._runs[record["TrainingJobName"]].stop.set()
        return {}

    def update(self, request: dict[str, Any]) -> dict[str, Any]:
        """UpdateTrainingJob, for what it is needed most: KeepAlivePeriodInSeconds 0 ends a pool."""
        requests.check("UpdateTrainingJob", request)
        record = self.describe({"TrainingJobName": request["TrainingJobName"]})
        if request.get("ResourceConfig") != {"KeepAlivePeriodInSeconds": 0}:
            raise validation("The laptop updates KeepAlivePeriodInSeconds to 0 only.")
        if not self._platform.pools.end(record["TrainingJobName"]):
            raise validation("The training job has no warm pool that is available.")
        return {"TrainingJobArn": record["TrainingJobArn"]}

    def delete(self, request: dict[str, Any]) -> dict[str, Any]:
        """DeleteTrainingJob: jobs that have ended, with all their files; the name is free again."""
        requests.check("DeleteTrainingJob", request)
        record = self.describe(request)
        if not is_over(record):
            raise ServiceError(
                "ResourceInUse",
                f"The training job is in status {record['TrainingJobStatus']}; stop it first.",
            )
        if is_available(record):
            raise ServiceError("ResourceInUse", "The training job has a warm pool; end it first.")
        self._platform.store.remove(record["TrainingJobName"])
        self._runs.pop(record["TrainingJobName"], None)
        # The work folder of a failed job holds the user's photos.
        folder = self._platform.settings.layout.jobs / record["TrainingJobName"]
        if folder.exists():
            shutil.rmtree(folder)
        return {}

    def list(self, request: dict[str, Any]) -> dict[str, Any]:
        """ListTrainingJobs."""
        requests.check("ListTrainingJobs", request)
        wanted = [
            record
            for record in self._platform.store.all()
            if request.get("StatusEquals") in (None, record["TrainingJobStatus"])
            and request.get("NameContains", "") in record["TrainingJobName"]
            and record["CreationTime"] > _time(request, "CreationTimeAfter", 0)
            and record["CreationTime"] < _time(request, "CreationTimeBefore", float("inf"))
        ]
        keys: dict[str, Callable[[Record], Any]] = {
            "Name": lambda record: record["TrainingJobName"],
            "CreationTime": lambda record: record["CreationTime"],
            "Status": lambda record: record["TrainingJobStatus"],
        }
        wanted.sort(
            key=keys[request.get("SortBy", "CreationTime")],
            reverse=request.get("SortOrder") == "Descending",
        )
        summaries = [{key: job[key] for key in _SUMMARY if key in job} for job in wanted]
        return page("TrainingJobSummaries", summaries, request)

    def wait(self, name: str, timeout_s: float) -> bool:
        """Waits for the end of a job; returns whether it has ended."""
        run = self._runs.get(name)
        return run is None or run.done.wait(timeout_s)

    def close(self) -> None:
        """Kills what runs; the records stay as they are, for the next start to fail them."""
        self._platform.closing.set()
        with self._creating:
            runs = list(self._runs.values())
        for run in runs:
            run.join(_CLOSE_WITHIN_S)

    def _check_quota(self, resources: dict[str, Any]) -> None:
        quota = self._platform.trouble.instance_quota
        if quota is None:
            quota = self._platform.settings.instance_quota
        self._platform.pools.expire()
        used = sum(
            record["ResourceConfig"]["InstanceCount"]
            for record in self._platform.store.all()
            if not is_over(record) or is_available(record)
        )
        wanted = resources["InstanceCount"]
        if used + wanted > quota:
            raise ServiceError(
                "ResourceLimitExceeded",
                f"The account-level service limit '{resources['InstanceType']} for training job "
                f"usage' is {quota} Instances, with current utilization of {used} Instances and a "
                f"request delta of {wanted} Instances. Please use AWS Service Quotas to request "
                "an increase for this quota.",
            )


def _check_supported(request: dict[str, Any]) -> None:
    """What the service checks beyond its API model, and what the laptop cannot do."""
    for member in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if member not in request:
            raise validation(f"{member} is required.")
    algorithm, resources = request["AlgorithmSpecification"], request["ResourceConfig"]
    if "TrainingImage" not in algorithm:
        raise validation("AlgorithmSpecification.TrainingImage is required on the laptop.")
    if {"ContainerEntrypoint", "ContainerArguments"} & algorithm.keys():
        raise validation("The laptop runs the command that was registered for the image.")
    if algorithm["TrainingInputMode"] != "File":
        raise validation("The laptop reads channels in File mode only.")
    if request["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP":
        raise validation("The laptop writes model.tar.gz only.")
    if not {"InstanceType", "InstanceCount"} <= resources.keys():
        raise validation("ResourceConfig needs InstanceType and InstanceCount on the laptop.")
    if resources["InstanceCount"] > MAX_INSTANCES:
        raise validation(f"The laptop runs at most {MAX_INSTANCES} instances a job.")
    _check_spot(request)
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            raise validation(f"MetricDefinitions: {definition['Name']}: {error}") from error
    Location.parse(request["OutputDataConfig"]["S3OutputPath"])
    for channel in request.get("InputDataConfig", []):
        _check_channel(channel)
    checkpoints = request.get("CheckpointConfig")
    if checkpoints is not None:
        Location.parse(checkpoints["S3Uri"])
        if checkpoints.get("LocalPath", _CHECKPOINTS) != _CHECKPOINTS:
            raise validation(f"The laptop syncs checkpoints from {_CHECKPOINTS} only.")


def _check_spot(request: dict[str, Any]) -> None:
    """Developer guide, "Managed Spot Training": MaxWaitTimeInSeconds bounds wait and run together.

    "Train Using SageMaker AI Managed Warm Pools": "Spot instances: not supported".
    """
    condition = request["StoppingCondition"]
    wait_s = condition.get("MaxWaitTimeInSeconds")
    if not request.get("EnableManagedSpotTraining"):
        if wait_s is not None:
            raise validation(
                "MaxWaitTimeInSeconds above 0 is not supported without EnableManagedSpotTraining."
            )
        return
    runtime_s = condition.get("MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME_S)
    if wait_s is None or wait_s < runtime_s:
        raise validation(
            f"Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to "
            f"MaxRuntimeInSeconds ({runtime_s})."
        )
    if keep_alive_s(request):
        raise validation(
            "KeepAlivePeriodInSeconds (warm pools) cannot be used with EnableManagedSpotTraining."
        )


def _check_channel(channel: dict[str, Any]) -> None:
    source = channel["DataSource"].get("S3DataSource")
    if source is None or source["S3DataType"] not in channels.KINDS:
        raise validation("The laptop reads channels of S3DataType S3Prefix or ManifestFile only.")
    if source.get("S3DataDistributionType", "FullyReplicated") != "FullyReplicated":
        raise validation("The laptop distributes channels FullyReplicated only.")
    if channel.get("InputMode", "File") != "File":
        raise validation("The laptop reads channels in File mode only.")
    as_they_are = {
        channel.get(member, "None") for member in ("CompressionType", "RecordWrapperType")
    }
    if as_they_are != {"None"} or "ShuffleConfig" in channel:
        raise validation("The laptop neither unpacks, wraps nor shuffles channels.")
    Location.parse(source["S3Uri"])


def _time(request: dict[str, Any], member: str, otherwise: float) -> float:
    return float(request.get(member, otherwise))
