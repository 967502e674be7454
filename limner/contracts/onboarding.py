"""What an onboarding is told and what it says when it ends."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from limner.contracts import keys

SCHEMA_VERSION: Final = 1

UserId = Annotated[str, AfterValidator(keys.check_user_id)]
ModelId = Annotated[str, AfterValidator(keys.check_model_id)]
RequestId = Annotated[str, AfterValidator(keys.check_request_id)]


class OnboardingInput(BaseModel):
    """Input of the state machine ``onboard``: references and the training config.

    No photo and no name travels here, but the config's preview prompts and subject do, and AWS
    keeps an execution's input for 90 days: an app must not put personal text into them.

    Every field is always present: a JSONPath that selects nothing ends an execution with
    States.Runtime.

    Attributes:
        schema_version: Version of this form.
        request_id: The wish that this execution fulfils.
        user_id: Whose model.
        model_id: Which of the user's models.
        attempt: Number of the first training attempt; the execution counts on from it.
        retrain: Whether to train a new version when the model is ready already.
        hyperparameters: The training config, from ``TrainingConfig.to_hyperparameters``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    request_id: RequestId
    user_id: UserId
    model_id: ModelId = keys.DEFAULT_MODEL_ID
    attempt: int = Field(default=1, ge=1)
    retrain: bool = False
    hyperparameters: dict[str, str]


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
    fix: str
