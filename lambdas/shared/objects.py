"""Objects of S3 that may not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef


def get_object(s3: S3Client, bucket: str, key: str) -> GetObjectOutputTypeDef | None:
    """GetObject's answer; None if there is no such object.

    Raises:
        ClientError: Any other refusal.
    """
    try:
        return s3.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
