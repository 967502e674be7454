"""The settings of one stage; the only place where infra reads the environment."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from limner.contracts import keys
from limner.contracts.base import TINY_BASE_ID

LOCAL: Final = "local"

Stage = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{1,11}$")]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]


class StageSettings(BaseSettings):
    """What differs from stage to stage; from the environment, ``LIMNER_<NAME>``.

    Attributes:
        stage: Name of the stage; part of the stack's name. ``local`` is the laptop.
        base_id: The frozen base under all adapters.
        training_image: The training program's image; a stack parameter without default if empty.
        inference_image: The endpoint's image, likewise.
        training_instance_type: The machine a training job runs on.
        endpoint_instance_type: The machine the endpoint runs on. One without a GPU: on a GPU, a
            multi-model endpoint takes NVIDIA Triton alone for a container (SageMaker developer
            guide, "Supported algorithms, frameworks, and instances"), and ours is no Triton yet.
        endpoint_instances: Number of machines behind the endpoint.
        image_repositories: Names of the ECR repositories that the images come from; where the
            right to pull ends.
        photo_days: Days until photos and first images are deleted.
        job_days: Days until a job's own archive is deleted; its published copy stays.
    """

    model_config = SettingsConfigDict(env_prefix="LIMNER_", frozen=True, extra="ignore")

    stage: Stage = LOCAL
    base_id: Annotated[str, AfterValidator(keys.check_base_id)] = TINY_BASE_ID
    training_image: str = ""
    inference_image: str = ""
    training_instance_type: InstanceType = "ml.g5.xlarge"
    endpoint_instance_type: InstanceType = "ml.m5.xlarge"
    endpoint_instances: int = Field(default=1, ge=1, le=100)
    image_repositories: str = "limner/*"
    photo_days: int = Field(default=30, ge=1, le=3_650)
    job_days: int = Field(default=14, ge=1, le=3_650)

    @property
    def is_local(self) -> bool:
        """Whether this is the laptop: no assets, no logs, nothing that needs a bootstrap."""
        return self.stage == LOCAL

    @property
    def stack_name(self) -> str:
        """Name of the CloudFormation stack."""
        return f"limner-{self.stage}"


def laptop() -> StageSettings:
    """The settings of the committed template, whatever the environment says."""
    return StageSettings(
        stage=LOCAL,
        base_id=TINY_BASE_ID,
        training_image="limner/training:local",
        inference_image="limner/inference:local",
        training_instance_type="ml.m5.xlarge",
        endpoint_instance_type="ml.m5.xlarge",
        endpoint_instances=1,
        image_repositories="limner/*",
        photo_days=30,
        job_days=14,
    )
