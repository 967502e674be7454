"""What executions are told, without pydantic."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1


def onboarding_input(
    request_id: str, user_id: str, model_id: str, *, attempt: int, retrain: bool
) -> dict[str, str | int | bool]:
    """``limner.contracts.onboarding.OnboardingInput``, with its fields in its order.

    StartExecution compares inputs byte by byte, so whoever starts the same attempt says the same.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "request_id": request_id,
        "user_id": user_id,
        "model_id": model_id,
        "attempt": attempt,
        "retrain": retrain,
    }
