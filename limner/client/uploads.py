"""What a request needs in S3: its photos and its training config."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from limner.contracts import keys
from limner.contracts.training import TrainingConfig
from limner.photos import Photo

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_UPLOADS_AT_ONCE: Final = 4


def upload(s3: S3Client, bucket: str, prefix: str, photos: Sequence[Photo]) -> None:
    """Uploads photos under a prefix; doing it again changes nothing.

    Raises:
        ClientError: As AWS gives it; ``BadDigest`` if a file has changed since it was checked.
    """

    def put(photo: Photo) -> None:
        with photo.open() as body:
            s3.put_object(
                Bucket=bucket,
                Key=prefix + photo.key_name,
                Body=body,
                ContentType=photo.header.content_type,
                ContentLength=photo.size_bytes,
                # S3 refuses bytes other than those that were checked.
                ChecksumSHA256=base64.b64encode(bytes.fromhex(photo.sha256)).decode(),
            )

    with ThreadPoolExecutor(_UPLOADS_AT_ONCE, thread_name_prefix="limner-upload") as pool:
        for _ in pool.map(put, photos):
            pass


def put_config(s3: S3Client, bucket: str, request_id: str, config: TrainingConfig) -> None:
    """Writes the training config to where the job will read it; doing it again changes nothing.

    Raises:
        ClientError: As AWS gives it.
    """
    s3.put_object(
        Bucket=bucket,
        Key=keys.config_prefix(request_id) + keys.CONFIG_FILE,
        Body=config.model_dump_json().encode(),
        ContentType="application/json",
    )


def remove_strays(s3: S3Client, bucket: str, prefix: str, photos: Sequence[Photo]) -> None:
    """Deletes what an earlier call with the same token and other photos left behind.

    That call broke off before it wrote its request, so nobody but this request uses the prefix;
    without this, the job would train on the photos of both.

    Raises:
        ClientError: As AWS gives it.
    """
    ours = {prefix + photo.key_name for photo in photos}
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for key in [item["Key"] for page in pages for item in page.get("Contents", [])]:
        if key not in ours:
            s3.delete_object(Bucket=bucket, Key=key)
