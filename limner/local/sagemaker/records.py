"""The record of a training job, in the form that DescribeTrainingJob answers with."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from limner.local.json_types import Json
from limner.local.objects import Location
from limner.local.sagemaker.arns import TRAINING_JOB, arn
from limner.local.sagemaker.store import Record

TERMINAL: Final = frozenset({"Completed", "Failed", "Stopped"})

# StatusMessage of DescribeTrainingJob, as the service words them.
_MESSAGES: Final = {
    "Starting": "Starting the training job",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
    "Interrupted": "Training job interrupted: the spot instances were reclaimed",
}
# What a job is billed for; it is not for waiting for instances.
_BILLED: Final = frozenset({"Downloading", "Training", "Stopping", "Uploading"})
# Billed seconds for each second on spot instances. AWS: "up to 90%" less, by the market; ours is
# fixed, so that a reader sees where the saving stands.
_SPOT_SHARE: Final = 0.3
_TIMES: Final = frozenset(
    {
        "CreationTime",
        "LastModifiedTime",
        "TrainingStartTime",
        "TrainingEndTime",
        "StartTime",
        "EndTime",
        "Timestamp",
    }
)


def new_record(request: dict[str, Any]) -> Record:
    """The record of a job that has just been accepted. Times are epoch seconds."""
    name = request["TrainingJobName"]
    output = Location.parse(request["OutputDataConfig"]["S3OutputPath"])
    now = time.time()
    record: Record = {
        **{key: value for key, value in request.items() if key != "Tags"},
        "TrainingJobArn": arn(TRAINING_JOB, name),
        "ModelArtifacts": {"S3ModelArtifacts": artifact_location(output, name).uri},
        "CreationTime": now,
        "SecondaryStatusTransitions": [],
        "FinalMetricDataList": [],
        "EnableNetworkIsolation": request.get("EnableNetworkIsolation", False),
        "EnableInterContainerTrafficEncryption": request.get(
            "EnableInterContainerTrafficEncryption", False
        ),
        "EnableManagedSpotTraining": request.get("EnableManagedSpotTraining", False),
    }
    if request["ResourceConfig"].get("KeepAlivePeriodInSeconds"):
        record["WarmPoolStatus"] = {"Status": "InUse", "ResourceRetainedBillableTimeInSeconds": 0}
    transition(record, "InProgress", "Starting")
    return record


def artifact_location(output: Location, job_name: str) -> Location:
    """Where the job's archive goes: <S3OutputPath>/<job>/output/model.tar.gz."""
    return output.below(f"{job_name}/output/model.tar.gz")


def transition(record: Record, status: str, secondary: str, reason: str = "") -> None:
    """Moves the record to a status, with the next entry of SecondaryStatusTransitions.

    Args:
        record: Changed in place.
        status: TrainingJobStatus.
        secondary: SecondaryStatus.
        reason: FailureReason, for a failed job.
    """
    now = time.time()
    transitions = record["SecondaryStatusTransitions"]
    if transitions:
        transitions[-1]["EndTime"] = now
    transitions.append(
        {"Status": secondary, "StartTime": now, "StatusMessage": _MESSAGES[secondary]}
    )
    record.update(TrainingJobStatus=status, SecondaryStatus=secondary, LastModifiedTime=now)
    if secondary == "Downloading":
        record.setdefault("TrainingStartTime", now)  # once, also after interruptions
    if reason:
        record["FailureReason"] = reason
        transitions[-1]["StatusMessage"] = reason
    if status in TERMINAL:
        transitions[-1]["EndTime"] = now
        record["TrainingEndTime"] = now
        if "TrainingStartTime" in record:
            seconds = _worked_s(transitions)
            share = _SPOT_SHARE if record["EnableManagedSpotTraining"] else 1
            record["TrainingTimeInSeconds"] = math.ceil(seconds)
            record["BillableTimeInSeconds"] = math.ceil(seconds * share)


def _worked_s(transitions: list[dict[str, Any]]) -> float:
    return sum(
        float(step["EndTime"] - step["StartTime"])
        for step in transitions
        if step["Status"] in _BILLED
    )


def is_over(record: Record) -> bool:
    """Whether the job has ended."""
    return record["TrainingJobStatus"] in TERMINAL


def with_millisecond_times(value: Json) -> Json:
    """The same JSON with times as epoch milliseconds, as ``.sync`` hands them to the machine."""
    if isinstance(value, list):
        return [with_millisecond_times(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: int(item * 1000) if key in _TIMES else with_millisecond_times(item)
        for key, item in value.items()
    }
