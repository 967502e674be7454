"""Requests are checked against AWS's own description of its API."""

from __future__ import annotations

from typing import Any

import pytest

from limner.local.errors import ServiceError
from limner.local.sagemaker import requests

SOUND = {
    "TrainingJobName": "limner-r1-1",
    "RoleArn": "arn:aws:iam::000000000000:role/r",
    "OutputDataConfig": {"S3OutputPath": "s3://b/jobs"},
    "HyperParameters": {"steps": "3"},
    "EnableNetworkIsolation": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
}


def test_a_sound_request_passes() -> None:
    requests.check("CreateTrainingJob", SOUND)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"TrainingJobName": None}, "Value null at 'trainingJobName'"),
        ({"TrainingJobName": "-a"}, "'trainingJobName' .*regular expression"),
        ({"TrainingJobName": 5}, "'trainingJobName' .*must be a string"),
        ({"HyperParameters": {"a": 5}}, "'hyperParameters.a.member' .*must be a string"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, "greater than or equal to 1"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": True}}, "must be a integer"),
        ({"ResourceConfig": {"InstanceType": "ml.none", "VolumeSizeInGB": 1}}, "enum value set"),
        ({"Nonsense": 1}, "Unknown member 'nonsense'"),
        ({"RetryStrategy": {"MaximumRetryAttempts": 31}}, "less than or equal to 30"),
    ],
)
def test_faults_are_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ServiceError, match=fault) as error:
        requests.check("CreateTrainingJob", {**SOUND, **change})
    assert error.value.code == "ValidationException"


def test_all_faults_are_counted() -> None:
    with pytest.raises(ServiceError, match="3 validation errors detected"):
        requests.check("CreateTrainingJob", {})
