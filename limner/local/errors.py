"""The errors that the emulated AWS services answer with.

These are AWS's codes on AWS's wire, not errors of Limner: a caller meets them as botocore's
``ClientError`` or as an ASL error name, exactly as in the cloud.
"""

from __future__ import annotations


class ServiceError(Exception):
    """A service refuses a call.

    Args:
        code: AWS's error code, e.g. ``ResourceInUse``.
        message: AWS's sentence.
        status: HTTP status.
        members: Further members of the error's shape, e.g. ``OriginalStatusCode``.
    """

    def __init__(
        self, code: str, message: str, status: int = 400, members: dict[str, object] | None = None
    ) -> None:
        self.code = code
        self.message = message
        self.status = status
        self.members = members or {}
        super().__init__(f"{code}: {message}")


def throttled() -> ServiceError:
    """What AWS says to a caller that calls too often (a common error, not in the API model)."""
    return ServiceError("ThrottlingException", "Rate exceeded")


def validation(message: str) -> ServiceError:
    """What SageMaker says to a request that it cannot accept."""
    return ServiceError("ValidationException", message)
