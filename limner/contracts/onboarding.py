"""What an onboarding is told and what it says when it ends."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from limner.contracts import keys

SCHEMA_VERSION: Final = 1
REQUESTED_EVENT: Final = "limner.onboarding.requested"
# The form's own bound: the payload of 256 KiB ends far above it. A batch whose retries are all used
# up fits a history of 25,000 events with fewer requests (workflows.retries.MOST_REQUESTS).
MAX_BATCH: Final = 100

UserId = Annotated[str, AfterValidator(keys.check_user_id)]
ModelId = Annotated[str, AfterValidator(keys.check_model_id)]
RequestId = Annotated[str, AfterValidator(keys.check_request_id)]


class OnboardingInput(BaseModel):
    """Input of the state machine ``onboard``, and detail of ``limner.onboarding.requested``.

    Only identifiers travel here. AWS keeps an execution's input for 90 days, so photos and the
    training config, which holds prompts, stay in the bucket (``keys.uploads_prefix`` and
    ``keys.config_prefix``), where they expire and can be erased.

    Every field is always present: a JSONPath that selects nothing ends an execution with
    States.Runtime.

    Attributes:
        schema_version: Version of this form.
        request_id: The wish that this execution fulfils.
        user_id: Whose model.
        model_id: Which of the user's models.
        attempt: Number of the first training attempt; the execution counts on from it.
        retrain: Whether to train a new version when the model is ready already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    request_id: RequestId
    user_id: UserId
    model_id: ModelId = keys.DEFAULT_MODEL_ID
    attempt: int = Field(default=1, ge=1)
    retrain: bool = False


class BatchInput(BaseModel):
    """Input of the state machine ``onboard_batch``: requests that share one training job.

    Attributes:
        schema_version: Version of this form.
        batch_id: Name of the batch; ``keys.batch_id`` makes it from the requests.
        attempt: Number of the first training job; the execution counts on from it.
        instances: Training instances that the batch may use; None for as many as the stage allows.
        earlier_job: Training job of another batch that had the same requests before; what it has
            finished of them is taken instead of trained again. Empty for none.
        requests: What ``onboard`` would be told of each, in the order of the queue.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    batch_id: RequestId
    attempt: int = Field(default=1, ge=1)
    instances: int | None = Field(default=None, ge=1)
    earlier_job: Annotated[str, Field(max_length=63)] = ""
    requests: Annotated[tuple[OnboardingInput, ...], Field(min_length=1, max_length=MAX_BATCH)]


class WorkerInput(BaseModel):
    """Input of the state machine ``worker``: a job that takes its requests from the queue.

    Attributes:
        schema_version: Version of this form.
        batch_id: Name of the worker; its results lie where those of a batch of this name would.
        attempt: Number of its first training job; the execution counts on from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    batch_id: RequestId
    attempt: int = Field(default=1, ge=1)


class OnboardingReady(BaseModel):
    """Body of the notification that a version serves."""

    model_config = ConfigDict(frozen=True)

    type: Literal["limner.onboarding.ready"] = "limner.onboarding.ready"
    schema_version: Literal[1] = SCHEMA_VERSION
    request_id: str
    user_id: str
    model_id: str
    version: int
    target_model: str


class OnboardingFailed(BaseModel):
    """Body of the notification that an onboarding has failed or was cancelled."""

    model_config = ConfigDict(frozen=True)

    type: Literal["limner.onboarding.failed"] = "limner.onboarding.failed"
    schema_version: Literal[1] = SCHEMA_VERSION
    request_id: str
    user_id: str
    model_id: str
    code: str
    message: str
    retryable: bool
    fault: Literal["caller", "aws", "limner"] = "limner"
    fix: str
