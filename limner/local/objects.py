"""S3 as the emulated platform uses it: URIs, downloads and uploads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from limner.local.clients import make_client
from limner.local.errors import validation

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_S3_URI = re.compile(r"s3://([^/]+)/?(.*)")
# What CDK's S3Location.from_bucket and the console write: path style and virtual-host style.
_PATH_STYLE = re.compile(r"https://s3[.-][^/]*/([^/]+)/?(.*)")
_HOST_STYLE = re.compile(r"https://([^/]+?)\.s3[.-][^/]*/?(.*)")


@dataclass(frozen=True, slots=True)
class Location:
    """A place in S3.

    Attributes:
        bucket: Name of the bucket.
        key: Key or prefix; may be empty.
    """

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Reads ``s3://bucket/key`` and both https forms.

        Raises:
            ServiceError: ``ValidationException`` for any other text.
        """
        for form in (_S3_URI, _PATH_STYLE, _HOST_STYLE):
            match = form.fullmatch(uri)
            if match:
                return cls(match[1], match[2])
        raise validation(f"The S3 URI '{uri}' is not valid.")

    def below(self, name: str) -> Location:
        """The place ``name`` below this one."""
        return Location(self.bucket, f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def uri(self) -> str:
        """The s3:// form."""
        return f"s3://{self.bucket}/{self.key}"


class Objects:
    """The laptop's S3, over its own endpoint; thread-safe.

    Args:
        endpoint_url: Where the laptop listens.
    """

    def __init__(self, endpoint_url: str) -> None:
        self._endpoint_url = endpoint_url

    @cached_property
    def client(self) -> S3Client:
        """The client, made at first use: boto3 takes its time to import."""
        from botocore.config import Config

        made: S3Client = make_client(
            "s3",
            self._endpoint_url,
            Config(
                s3={"addressing_style": "path"},
                max_pool_connections=20,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        return made

    def keys(self, prefix: Location) -> Iterator[Location]:
        """All objects whose key begins with the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=prefix.bucket, Prefix=prefix.key
        )
        for page in pages:
            for item in page.get("Contents", []):
                yield Location(prefix.bucket, item["Key"])

    def download(self, source: Location, path: Path) -> None:
        """Streams an object into a file, with the folders it needs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        body = self.client.get_object(Bucket=source.bucket, Key=source.key)["Body"]
        with path.open("wb") as file:
            for chunk in body.iter_chunks(1 << 20):
                file.write(chunk)

    def read(self, source: Location) -> bytes:
        """A small object as bytes."""
        return self.client.get_object(Bucket=source.bucket, Key=source.key)["Body"].read()

    def download_prefix(self, prefix: Location, folder: Path) -> int:
        """Copies all objects of a prefix into a folder.

        File names are what follows the last ``/`` of the prefix, so that ``s3://b/photos/`` and
        ``s3://b/photos/a`` both put ``photos/a.png`` at ``a.png``.

        Returns:
            Number of files.
        """
        cut = prefix.key.rfind("/") + 1
        count = 0
        for location in self.keys(prefix):
            relative = location.key[cut:]
            if relative and not relative.endswith("/"):
                self.download(location, inside(folder, relative))
                count += 1
        return count

    def upload(self, path: Path, target: Location) -> None:
        """Uploads a file in one call."""
        with path.open("rb") as file:
            self.client.put_object(Bucket=target.bucket, Key=target.key, Body=file)

    def delete(self, target: Location) -> None:
        """Deletes an object; one that does not exist is no error."""
        self.client.delete_object(Bucket=target.bucket, Key=target.key)


def inside(folder: Path, relative: str) -> Path:
    """The file of a key below a folder.

    Raises:
        ServiceError: ``ValidationException`` for a key that leads out of the folder.
    """
    path = Path(relative)
    if not relative or ".." in path.parts or path.is_absolute() or "\0" in relative:
        raise validation(f"The key '{relative}' cannot be a file name.")
    return folder / relative
