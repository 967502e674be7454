"""The settings of training jobs: what SageMaker would refuse is refused here."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from limner.contracts.errors import LimnerError
from workflows import jobs, retries
from workflows.jobs import Job, JobSettings

JOB = Job(
    channels=[jobs.channel("photos", {"S3Uri.$": "$.photos"}, data_type="ManifestFile")],
    output="s3://b/jobs",
    checkpoints={"S3Uri": "s3://b/previews"},
    instances={"InstanceCount": 1},
    runtime={"MaxRuntimeInSeconds": 7200},
    environment={},
)


def request(**settings: Any) -> dict[str, Any]:
    return jobs.request("image", JobSettings(**settings), JOB)


def test_a_plain_job_asks_for_nothing_special() -> None:
    made = request()
    assert made["ResourceConfig"] == {
        "InstanceCount": 1,
        "InstanceType.$": "$.job.instance_type",
        "VolumeSizeInGB": 50,
    }
    assert made["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200}
    assert {"EnableManagedSpotTraining", "VpcConfig", "HyperParameters"}.isdisjoint(made)
    assert made["EnableNetworkIsolation"] is True


def test_a_warm_pool() -> None:
    assert request(keep_alive_s=600)["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600


def test_machines_that_claim_tasks_have_a_network_and_only_they() -> None:
    told = {"LIMNER_CLAIMS.$": "$.claims"}
    for wants, may in itertools.product((False, True), repeat=2):
        job = replace(JOB, claims=told if may else {})
        made = jobs.request("image", JobSettings(claims=wants), job)
        assert made["EnableNetworkIsolation"] is not (wants and may)
        assert made["Environment"] == (told if wants and may else {})


def test_what_the_program_is_told_of_its_passes_and_figures() -> None:
    assert request(rows=4)["Environment"] == {"LIMNER_ROWS": "4"}
    assert request(quality=False)["Environment"] == {"LIMNER_QUALITY": "false"}
    assert request()["Environment"] == {}


def test_a_worker_keeps_no_checkpoints_and_calls_aws() -> None:
    made = jobs.request("image", JobSettings(), replace(JOB, checkpoints={}, calls_aws=True))
    assert made["EnableNetworkIsolation"] is False
    assert "CheckpointConfig" not in made


def test_spot_machines_wait_and_keep_their_checkpoints() -> None:
    made = request(spot=True, max_wait_s=retries.SPOT_WAIT_S)
    assert made["EnableManagedSpotTraining"] is True
    assert made["StoppingCondition"]["MaxWaitTimeInSeconds"] == retries.SPOT_WAIT_S
    assert made["CheckpointConfig"] == {"S3Uri": "s3://b/previews", "LocalPath": jobs.CHECKPOINTS}
    assert "KeepAlivePeriodInSeconds" not in made["ResourceConfig"]


def test_a_key_and_a_network() -> None:
    made = request(kms_key="key", subnets=("s",), security_groups=("g",))
    assert made["ResourceConfig"]["VolumeKmsKeyId"] == "key"
    assert made["OutputDataConfig"] == {"S3OutputPath": "s3://b/jobs", "KmsKeyId": "key"}
    assert made["VpcConfig"] == {"SecurityGroupIds": ["g"], "Subnets": ["s"]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spot": True, "keep_alive_s": 60}, "exclude each other"),
        ({"keep_alive_s": -1}, "keep_alive_s"),
        ({"keep_alive_s": jobs.LONGEST_KEEP_ALIVE_S + 1}, "keep_alive_s"),
        ({"spot": True, "max_wait_s": retries.BATCH_RUNTIME_S - 1}, "max_wait_s"),
        ({"spot": True, "max_wait_s": retries.SPOT_WAIT_S + 1}, "max_wait_s"),
        ({"subnets": ("s",)}, "belong together"),
        ({"volume_gb": 0}, "volume_gb"),
    ],
)
def test_what_sagemaker_would_refuse(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(LimnerError, match="INVALID_INPUT") as refused:
        JobSettings(**settings)
    assert words in str(refused.value)
