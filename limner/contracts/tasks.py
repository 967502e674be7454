"""What a batch job is told, line by line, and what it says of each task."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from limner.contracts.onboarding import ModelId, RequestId, UserId
from limner.contracts.training import TrainingConfig

TASKS_FILE: Final = "tasks.jsonl"
RESULT_FILE: Final = "result.json"
ARTIFACT_FILE: Final = "model.tar.gz"
TASKS_CHANNEL: Final = "tasks"


class Task(BaseModel):
    """One line of ``tasks.jsonl``: one request's part of a batch job.

    Attributes:
        schema_version: Version of this form.
        request_id: The wish.
        user_id: Whose model.
        model_id: Which of the user's models.
        photos: Folder of the photos inside of the channel ``photos``, with a slash at its end.
        config: How to train.
        instance: The instance that does it: position in ``hosts``, modulo their number.
        predicted_s: Seconds that it was planned with.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    request_id: RequestId
    user_id: UserId
    model_id: ModelId
    photos: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+/[a-z0-9-]+/$")]
    config: TrainingConfig
    instance: int = Field(ge=0)
    predicted_s: float = Field(ge=0)


class TaskError(BaseModel):
    """Why a task failed, in the words of the error registry."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    message: str


class TaskResult(BaseModel):
    """``result.json``: how a task ended. Written after everything that it speaks of.

    Attributes:
        schema_version: Version of this form.
        request_id: The wish.
        status: Whether there is an artifact.
        seconds: Wall time of the task.
        metrics: Figures of the training, as in the artifact's manifest, and its timings.
        error: Why it failed; None if it did not.
        artifact_sha256: Hash of ``model.tar.gz``; empty if it failed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    request_id: RequestId
    status: Literal["trained", "failed"]
    seconds: float
    metrics: dict[str, float] = Field(default_factory=dict)
    error: TaskError | None = None
    artifact_sha256: str = ""
