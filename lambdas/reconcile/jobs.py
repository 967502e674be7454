"""Training jobs, looked at and stopped by name; only ours, which the prefix tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

# DescribeTrainingJob tells of a missing job by ValidationException "Requested resource not found.";
# the API reference names ResourceNotFound.
_MISSING: Final = frozenset({"ResourceNotFound", "ResourceNotFoundException"})


class Jobs:
    """Calls to SageMaker.

    Args:
        sagemaker: A client of SageMaker.
        prefix: How the names of our jobs begin.
    """

    def __init__(self, sagemaker: SageMakerClient, prefix: str) -> None:
        self._sagemaker = sagemaker
        self._prefix = prefix

    def describe(self, name: str) -> Mapping[str, Any] | None:
        """DescribeTrainingJob's answer; None if there is no such job, or it is not ours."""
        if not name.startswith(self._prefix):
            return None
        try:
            return dict(self._sagemaker.describe_training_job(TrainingJobName=name))
        except ClientError as error:
            if _is_missing(error):
                return None
            raise

    def stop(self, name: str) -> bool:
        """Stops a job.

        Returns:
            Whether there was something to stop.
        """
        try:
            self._sagemaker.stop_training_job(TrainingJobName=name)
        except ClientError as error:
            # A job that has just ended is refused by ValidationException.
            if _is_missing(error) or error.response["Error"]["Code"] == "ValidationException":
                return False
            raise
        return True


def _is_missing(error: ClientError) -> bool:
    told = error.response["Error"]
    not_found = "not found" in told.get("Message", "").lower()
    return told["Code"] in _MISSING or (told["Code"] == "ValidationException" and not_found)
