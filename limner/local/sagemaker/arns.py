"""Names of SageMaker's resources in the laptop's one account and region."""

from __future__ import annotations

from limner.local.settings import ACCOUNT, REGION

TRAINING_JOB = "training-job"
MODEL = "model"
ENDPOINT_CONFIG = "endpoint-config"
ENDPOINT = "endpoint"


def arn(kind: str, name: str) -> str:
    """The ARN of a resource; SageMaker writes names in lower case there."""
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name.lower()}"
