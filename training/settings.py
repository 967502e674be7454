"""Every environment variable of the training container, in one place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from limner.contracts.errors import LimnerError
from limner.contracts.keys import DEFAULT_MODEL_ID
from limner.contracts.onboarding import ModelId, RequestId
from limner.contracts.training import explain


class Settings(BaseSettings):
    """The environment of one training job.

    Attributes:
        base_dir: Root of the container's folders; SageMaker's own toolkits read the same
            variable, so tests and laptops can put it elsewhere.
        job_name: Set by SageMaker.
        request_id: The wish that this job fulfils; from CreateTrainingJob's Environment. None in
            a batch, which fulfils many.
        model_id: Which of the user's models.
        rows: Images that one pass through the UNet may hold: a batch's requests are trained
            together, as many as have room (docs/bases.md says what a row costs).
        quality: Whether quality figures are drawn for each model; without them the gate of the
            stage must ask for none (docs/quality.md says what they cost).
        claims: Where the hosts of a batch claim its tasks, so that whoever is done early does some
            of the others'; None for hosts that do what was planned for them, and call nobody.
        worker_table: The table of requests, for a job that takes its works from the queue; None for
            jobs that are told what to do.
        worker_bucket: The bucket of photos, configs and results, for such a job.
        worker_region: Region of both, which SageMaker does not tell a program.
        worker_idle_s: Such a job ends after so many seconds without work.
        worker_lifetime_s: It takes nothing on any more after so many.
        checkpoint_every_s: What an interruption may cost at most, in seconds of training. A
            checkpoint holds three times the adapters in training, in float32.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    base_dir: Path = Field(default=Path("/opt/ml"), validation_alias="SAGEMAKER_BASE_DIR")
    job_name: str = Field(default="", validation_alias="TRAINING_JOB_NAME")
    request_id: RequestId | None = Field(default=None, validation_alias="LIMNER_REQUEST_ID")
    model_id: ModelId = Field(default=DEFAULT_MODEL_ID, validation_alias="LIMNER_MODEL_ID")
    rows: int = Field(default=16, ge=1, le=4096, validation_alias="LIMNER_ROWS")
    quality: bool = Field(default=True, validation_alias="LIMNER_QUALITY")
    claims: Annotated[str, StringConstraints(pattern=r"^s3://[^/]+/.+/$")] | None = Field(
        default=None, validation_alias="LIMNER_CLAIMS"
    )
    worker_table: str | None = Field(default=None, validation_alias="LIMNER_WORKER_TABLE")
    worker_bucket: str = Field(default="", validation_alias="LIMNER_WORKER_BUCKET")
    worker_region: str | None = Field(default=None, validation_alias="LIMNER_WORKER_REGION")
    worker_idle_s: float = Field(default=600, gt=0, validation_alias="LIMNER_WORKER_IDLE_S")
    worker_lifetime_s: float = Field(
        default=4 * 3600, gt=0, validation_alias="LIMNER_WORKER_LIFETIME_S"
    )
    checkpoint_every_s: float = Field(
        default=60, ge=0, le=3600, validation_alias="LIMNER_CHECKPOINT_S"
    )

    @property
    def config_dir(self) -> Path:
        """Where SageMaker puts hyperparameters.json and its siblings."""
        return self.base_dir / "input" / "config"

    @property
    def data_dir(self) -> Path:
        """Where SageMaker puts the channels, one folder each."""
        return self.base_dir / "input" / "data"

    @property
    def model_dir(self) -> Path:
        """What SageMaker packs into model.tar.gz."""
        return self.base_dir / "model"

    @property
    def checkpoint_dir(self) -> Path:
        """What SageMaker copies to S3 while the job runs."""
        return self.base_dir / "checkpoints"

    @property
    def worker_dir(self) -> Path:
        """Where a worker keeps photos and results for a while: nothing that SageMaker copies."""
        return self.base_dir / "worker"

    def task_dir(self, request_id: str) -> Path:
        """Where a batch, or a worker, leaves what it made of one task."""
        parent = self.checkpoint_dir if self.worker_table is None else self.worker_dir / "out"
        return parent / request_id

    @property
    def state_dir(self) -> Path:
        """Where a cohort in training is kept; no request's id has an underscore."""
        return self.checkpoint_dir / "_state"

    @property
    def parts_dir(self) -> Path:
        """Where unfinished files lie: outside of all that SageMaker copies, on the same volume."""
        return self.base_dir / "parts"


def failure_file() -> Path:
    """Where the reason of a failure goes; known even when the other settings are wrong."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "output" / "failure"


def cpu_count() -> int:
    """CPUs that this process may use (a container may get fewer than the machine has)."""
    return len(os.sched_getaffinity(0))


def read_settings() -> Settings:
    """Reads the environment.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming each wrong variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"Environment: {explain(error)}.") from error
