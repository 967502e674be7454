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
}
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
        record["TrainingStartTime"] = now
    if reason:
        record["FailureReason"] = reason
        transitions[-1]["StatusMessage"] = reason
    if status in TERMINAL:
        transitions[-1]["EndTime"] = now
        record["TrainingEndTime"] = now
        if "TrainingStartTime" in record:
            seconds = math.ceil(now - record["TrainingStartTime"])
            record["TrainingTimeInSeconds"] = seconds
            record["BillableTimeInSeconds"] = seconds


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
