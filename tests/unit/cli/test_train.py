"""``limner train --on sagemaker`` against a stage on moto and a stand-in for AWS's SDK."""

from __future__ import annotations

import json
import sys

import pytest

from limner.contracts.training import TrainingConfig
from tests.support import sagemaker_sdk
from tests.support.sagemaker_sdk import Sdk
from tests.unit.cli.conftest import Shell
from tests.unit.client.world import World, session
from tests.unit.launcher.test_plan import published, workflow_request

TRAIN = ("train", "photos", "--on", "sagemaker")


@pytest.fixture
def stage(aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> World:
    """A stage with the published machine, and three photos to train on."""
    shell.photos(3)
    aws.clients.stepfunctions.update_state_machine(
        stateMachineArn=aws.deployment.onboard_machine_arn, definition=json.dumps(published())
    )
    monkeypatch.setattr("boto3.Session", session)
    return aws


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    return sagemaker_sdk.install(monkeypatch)


def put_results(stage: World, job: str) -> None:
    """What a job leaves in the bucket."""
    (request_id,) = [key.split("/")[2] for key in stage.uploaded()[:1]]
    for key in (
        f"jobs/{job}/output/model.tar.gz",
        f"previews/{request_id}/preview-00.png",
        f"previews/{request_id}/_state/cohort.pt",
    ):
        stage.clients.s3.put_object(Bucket=stage.deployment.bucket, Key=key, Body=b"made")


def test_the_job_is_the_workflows_own(stage: World, sdk: Sdk, shell: Shell) -> None:
    document = shell.json(*TRAIN, "-c", "steps=7", "--no-wait")
    (request,) = sdk.requests
    request_id = document["request_id"]
    assert document["job"] == request.pop("TrainingJobName")
    assert document["job"].startswith("tuning-limner-")
    assert request.pop("HyperParameters") == {}, "prompts stay out of the job's record"
    assert request == workflow_request(request_id)
    assert stage.config(request_id) == TrainingConfig(steps=7)
    assert len(stage.uploaded(f"uploads/tuning/{request_id}/")) == 3
    assert document["files"] == []


def test_the_result_is_fetched(stage: World, sdk: Sdk, shell: Shell) -> None:
    sdk.ending = lambda job: put_results(stage, job)
    result = shell(*TRAIN, "--out", "made", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["files"] == ["made/model.tar.gz", "made/preview-00.png"]
    assert (shell.folder / "made" / "model.tar.gz").read_bytes() == b"made"
    assert "Wait Log Panel" in result.stderr, "stdout is for the result"
    assert "Stop it: aws sagemaker stop-training-job --training-job-name tuning-" in result.stderr


def test_a_job_that_fails_tells_its_own_error(stage: World, sdk: Sdk, shell: Shell) -> None:
    sdk.fail("AlgorithmError: TRAINING_DIVERGED: The loss is nan. Fix: Lower it., exit code: 1")
    result = shell(*TRAIN)
    assert result.exit_code == 1
    assert "TRAINING_DIVERGED The loss is nan.\nFix: Lower the learning rate." in result.stderr


def test_a_plan_can_be_seen_without_the_sdk(
    stage: World, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    document = shell.json(*TRAIN, "--dry-run", "--instance-type", "ml.m5.xlarge")
    assert document["machine"]["instance_type"] == "ml.m5.xlarge"
    assert set(document["channels"]) == {"photos", "config", "base"}
    assert stage.uploaded() == []


def test_without_the_sdk_nothing_is_uploaded(
    stage: World, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    result = shell(*TRAIN)
    assert result.exit_code == 1
    assert "TOOL_MISSING The SageMaker SDK 3 (sagemaker, about 1 GB) is not installed" in (
        result.stderr
    )
    assert "pip install 'limner[launcher]'" in result.stderr
    assert stage.uploaded() == []


def test_aws_says_no(stage: World, sdk: Sdk, shell: Shell) -> None:
    stage.clients.s3.delete_bucket(Bucket=stage.deployment.bucket)
    result = shell(*TRAIN)
    assert result.exit_code == 3
    assert result.stderr.startswith("NOT_DEPLOYED ")


def test_wrong_words_are_refused_before_anything_is_done(shell: Shell) -> None:
    shell.photos(3)
    for words, told in (
        (("-c", "steps"), "'steps' is not of the form NAME=VALUE."),
        (("--stage", "prod", "--image", "x:1"), "--image, --stage is for --on sagemaker."),
        (("--base", "nowhere"), "The base nowhere is not a folder"),
    ):
        result = shell("train", "photos", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert told in result.stderr


def test_the_program_lies_in_a_checkout(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.photos(3)
    (shell.folder / "base").mkdir()
    monkeypatch.setattr("limner.launcher.here.PROGRAM_HOME", shell.folder)
    result = shell("train", "photos", "--base", "base")
    assert "TOOL_MISSING The training program lies in Limner's repository" in result.stderr
    assert result.exit_code == 1


def test_torch_is_an_extra(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.photos(3)
    (shell.folder / "base").mkdir()
    monkeypatch.setattr("limner.launcher.here.find_spec", lambda _: None)
    result = shell("train", "photos", "--base", "base")
    assert "TOOL_MISSING PyTorch is not installed: pip install 'limner[local]'." in result.stderr
