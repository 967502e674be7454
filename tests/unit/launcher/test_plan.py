"""Plans: frozen data, made without AWS."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from limner.launcher.here import Step, parse_step
from limner.launcher.plan import TUNING_USER, config_of, plan_here, plan_sagemaker
from limner.launcher.reasons import error_of
from limner.photos import check_photos
from limner.settings import Deployment
from tests.unit.client.world import photos

ASL = Path(__file__).parents[3] / "workflows" / "asl" / "onboard.asl.json"
SUBSTITUTIONS = {
    "BucketName": "limner-test",
    "BaseId": "tiny-1",
    "TrainingImage": "111122223333.dkr.ecr.eu-west-1.amazonaws.com/limner/training:1",
    "TrainingRoleArn": "arn:aws:iam::111122223333:role/training",
    "TrainingInstanceTypes": "ml.g5.xlarge,ml.g5.2xlarge",
}
DEPLOYMENT = Deployment(
    bucket="limner-test",
    models_table="models",
    requests_table="requests",
    onboard_machine_arn="arn:aws:states:eu-west-1:111122223333:stateMachine:onboard",
    endpoint_name="limner-test",
    base_id="tiny-1",
)
PHOTOS = check_photos(photos(3))


def published() -> dict[str, Any]:
    """The published machine as a stage has it: placeholders filled."""
    text = ASL.read_text(encoding="utf-8")
    for name, value in SUBSTITUTIONS.items():
        text = text.replace(f"${{{name}}}", value)
    definition: dict[str, Any] = json.loads(text)
    return definition


def as_executed(value: Any, request_id: str) -> Any:
    """ASL parameters as an execution fills them, for a request of the user who tunes."""
    state = {
        "$.request_id": request_id,
        "$.user_id": TUNING_USER,
        "$.model_id": "default",
        "$.job.instance_type": "ml.g5.xlarge",
    }
    if isinstance(value, list):
        return [as_executed(item, request_id) for item in value]
    if not isinstance(value, dict):
        return value
    filled = {}
    for name, item in value.items():
        if not name.endswith(".$"):
            filled[name] = as_executed(item, request_id)
        elif found := re.fullmatch(r"States\.Format\('([^']*)', (.*)\)", item):
            filled[name[:-2]] = found[1].format(*(state[path] for path in found[2].split(", ")))
        else:
            filled[name[:-2]] = state.get(item, item)
    return filled


def workflow_request(request_id: str) -> dict[str, Any]:
    """What the workflow asks SageMaker for, for the same request; all but the job's name."""
    request = as_executed(published()["States"]["FineTune"]["Parameters"], request_id)
    del request["TrainingJobName"]
    return dict(request)


def test_a_recipe_is_given_by_name() -> None:
    config = config_of(
        ["steps=300", "learning_rate=1e-4", "subject=dog", 'preview_prompts=["{token} in snow"]']
    )
    assert config == TrainingConfig(
        steps=300, learning_rate=1e-4, subject="dog", preview_prompts=("{token} in snow",)
    )
    assert config_of([]) == TrainingConfig()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["steps"], "'steps' is not of the form NAME=VALUE."),
        (["speed=3"], "There is no option 'speed', but seed, steps,"),
        (["sagemaker_program=x"], "There is no option 'sagemaker_program'"),
        (["steps=1", "steps=2"], "steps is given twice."),
        (["steps=0"], "steps: Input should be greater than or equal to 1"),
        (["rank=big"], "rank: Input should be a valid integer"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], words: str) -> None:
    with pytest.raises(LimnerError, match=re.escape(words)) as caught:
        config_of(options)
    assert caught.value.code == "INVALID_INPUT"


def test_a_plan_is_frozen_and_can_be_printed(tmp_path: Path) -> None:
    plan = plan_here(PHOTOS, tmp_path, TrainingConfig(), tmp_path / "out", request_id="r1")
    with pytest.raises(FrozenInstanceError):
        plan.request_id = "r2"  # type: ignore[misc]
    document = json.loads(json.dumps(plan.to_dict()))
    assert document["config"] == TrainingConfig().model_dump(mode="json")
    assert len(document["photos"]) == 3


def test_a_result_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").touch()
    with pytest.raises(LimnerError, match="is there already: give another --out"):
        plan_here(PHOTOS, tmp_path, TrainingConfig(), tmp_path, request_id="r1")


def test_a_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match="is not a folder: give --base FOLDER"):
        plan_here(PHOTOS, tmp_path / "x", TrainingConfig(), tmp_path, request_id="r1")


def test_a_job_is_planned_as_the_workflow_would_ask_for_it() -> None:
    plan = plan_sagemaker(published(), DEPLOYMENT, PHOTOS, TrainingConfig(), request_id="r1")
    wanted = workflow_request("r1")
    channels = [
        (item["ChannelName"], item["DataSource"]["S3DataSource"]["S3Uri"])
        for item in wanted["InputDataConfig"]
    ]
    assert list(plan.channels) == channels
    assert plan.checkpoints == wanted["CheckpointConfig"]["S3Uri"]
    assert dict(plan.environment) == wanted["Environment"]
    assert plan.image == SUBSTITUTIONS["TrainingImage"]
    assert plan.role == SUBSTITUTIONS["TrainingRoleArn"]
    assert plan.machine.instance_type == "ml.g5.xlarge"
    assert plan.network.isolated
    assert json.loads(json.dumps(plan.to_dict()))["on"] == "sagemaker"


def test_a_stage_with_key_spot_and_network_plans_them_too() -> None:
    definition = published()
    job = definition["States"]["FineTune"]["Parameters"]
    job["OutputDataConfig"]["KmsKeyId"] = job["ResourceConfig"]["VolumeKmsKeyId"] = "key"
    job["EnableManagedSpotTraining"] = True
    job["StoppingCondition"]["MaxWaitTimeInSeconds"] = 9000
    job["VpcConfig"] = {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    plan = plan_sagemaker(definition, DEPLOYMENT, PHOTOS, TrainingConfig(), request_id="r1")
    assert (plan.output_key, plan.machine.volume_key) == ("key", "key")
    assert (plan.machine.spot, plan.machine.max_wait_s) == (True, 9000)
    assert (plan.network.subnets, plan.network.security_groups) == (("subnet-1",), ("sg-1",))


def test_machine_image_and_base_can_be_others() -> None:
    plan = plan_sagemaker(
        published(),
        DEPLOYMENT,
        PHOTOS,
        TrainingConfig(),
        request_id="r1",
        instance_type="ml.p5.4xlarge",
        image="other:1",
        base="s3://bases/sdxl/",
    )
    assert (plan.machine.instance_type, plan.image) == ("ml.p5.4xlarge", "other:1")
    assert dict(plan.channels)["base"] == "s3://bases/sdxl/"


def test_a_folder_is_no_base_on_sagemaker() -> None:
    with pytest.raises(LimnerError, match="On SageMaker, a base is an S3 URI"):
        plan_sagemaker(
            published(), DEPLOYMENT, PHOTOS, TrainingConfig(), request_id="r1", base="bases/tiny"
        )


def test_a_machine_that_trains_otherwise_is_not_guessed_at() -> None:
    with pytest.raises(LimnerError) as caught:
        plan_sagemaker({"States": {}}, DEPLOYMENT, PHOTOS, TrainingConfig(), request_id="r1")
    assert caught.value.code == "NOT_DEPLOYED"
    definition = {"States": {"FineTune": published()["States"]["FineTune"]}}
    with pytest.raises(LimnerError, match="give --instance-type"):
        plan_sagemaker(definition, DEPLOYMENT, PHOTOS, TrainingConfig(), request_id="r1")


def test_progress_is_read_as_sagemaker_reads_it() -> None:
    line = "step=10 steps=25 loss=0.4868 images_per_second=13.5\n"
    assert parse_step(line) == Step(step=10, loss=0.4868, images_per_second=13.5)
    assert parse_step("event=preview index=0\n") is None


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("TRAINING_DIVERGED: loss is nan. Fix: Lower it.", "TRAINING_DIVERGED", "loss is nan."),
        (
            "FailedStatusError: AlgorithmError: PHOTO_TOO_SMALL: a.png is 8x8. Fix: Use, exit"
            " code: 1",
            "PHOTO_TOO_SMALL",
            "a.png is 8x8.",
        ),
        ("AlgorithmError: BASE_INVALID: gone, exit code: 1", "BASE_INVALID", "gone"),
        ("ERRNO: no room", "TRAINING_FAILED", "ERRNO: no room"),
    ],
)
def test_a_reason_becomes_the_registrys_error(text: str, code: str, message: str) -> None:
    error = error_of(text)
    assert (error.code, error.message) == (code, message)
