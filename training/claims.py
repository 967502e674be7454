"""Whose task is whose, among the hosts of one job. Beside ``orders``, nothing else calls AWS.

A claim is an object that is written once::

    batches/<batch>/<attempt>/claims/<request>     content: position of the host

S3 refuses the second ``PutObject`` with ``If-None-Match: *`` (Amazon S3 user guide, "Conditional
writes"), whoever sends it. A claim never expires. It need not: the instances of a job begin, end
and are started anew together, a host keeps its position, and another attempt has a prefix of its
own. Not below ``out/``, which SageMaker keeps equal to a folder of each host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TRIES: Final = 5


class Claims(Protocol):
    """The claims of one host."""

    def take(self, request_id: str) -> bool:
        """Claims a task.

        Returns:
            Whether it is this host's, now or since before.

        Raises:
            LimnerError: ``AWS_ERROR``, if nobody knows.
        """
        ...

    def taken(self) -> frozenset[str]:
        """The tasks that any host has claimed.

        Raises:
            LimnerError: ``AWS_ERROR``, if nobody knows.
        """
        ...


class S3Claims:
    """Claims as objects.

    Args:
        s3: A client of S3.
        bucket: The bucket.
        prefix: What all keys begin with; ends with a slash.
        host: Position of this host.
    """

    def __init__(self, s3: S3Client, bucket: str, prefix: str, host: int) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = prefix
        self._me = str(host).encode()

    def take(self, request_id: str) -> bool:
        """Writes the claim, or reads who has written it: perhaps a lost reply was our own."""
        from botocore.exceptions import BotoCoreError, ClientError

        key = f"{self._prefix}{request_id}"
        try:
            for _ in range(_TRIES):
                try:
                    self._s3.put_object(
                        Bucket=self._bucket, Key=key, Body=self._me, IfNoneMatch="*"
                    )
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code == "PreconditionFailed":
                        break
                    if code != "ConditionalRequestConflict":  # another write is on its way
                        raise
                else:
                    return True
            answer = self._s3.get_object(Bucket=self._bucket, Key=key)
            return answer["Body"].read(len(self._me) + 1) == self._me
        except (BotoCoreError, ClientError) as error:
            raise _refused(error) from error

    def taken(self) -> frozenset[str]:
        """Lists all claims."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            listed = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        except (BotoCoreError, ClientError) as error:
            raise _refused(error) from error
        return frozenset(key.removeprefix(self._prefix) for key in listed)


def open_claims(url: str, host: int) -> Claims:
    """The claims at a place in S3.

    Args:
        url: ``s3://<bucket>/<prefix>/``.
        host: Position of this host.
    """
    import boto3  # jobs without claims need no AWS
    from botocore.config import Config

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    retries = Config(retries={"mode": "standard", "total_max_attempts": 6})
    return S3Claims(boto3.client("s3", config=retries), bucket, prefix, host)


def _refused(error: Exception) -> LimnerError:
    return LimnerError("AWS_ERROR", f"No answer about a claim: {type(error).__name__}.")
