"""From a channel of the request to the folder that the program reads.

SageMaker API reference, S3DataSource. ``S3Prefix``: all objects below the prefix. ``ManifestFile``:
the object is a JSON list; its first element is ``{"prefix": "s3://bucket/some/prefix/"}``, each
further one a key relative to it, and the files land in the channel under these relative keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import ClientError

from limner.local.errors import ServiceError, validation
from limner.local.objects import Location, Objects, inside

PREFIX: Final = "S3Prefix"
MANIFEST: Final = "ManifestFile"
KINDS: Final = frozenset({PREFIX, MANIFEST})
# No more of a key than this in a FailureReason.
_SHOWN_CHARACTERS: Final = 200


def download(objects: Objects, source: dict[str, Any], folder: Path) -> int:
    """Copies the objects of an S3DataSource into a folder.

    Args:
        objects: S3.
        source: ``S3DataType`` and ``S3Uri``.
        folder: The channel's folder.

    Returns:
        Number of files.

    Raises:
        ServiceError: ``ValidationException``, if the manifest is none, a key leads out of the
            folder, or an object of the manifest does not exist.
        ClientError: From S3.
    """
    place = Location.parse(source["S3Uri"])
    if source["S3DataType"] == PREFIX:
        return objects.download_prefix(place, folder)
    prefix, names = read_manifest(_manifest(objects, place))
    for name in names:
        target = inside(folder, name)
        try:
            objects.download(Location(prefix.bucket, prefix.key + name), target)
        except ClientError as error:
            raise _missing(error, f"s3://{prefix.bucket}/{prefix.key}{name}") from error
    return len(names)


def read_manifest(text: str) -> tuple[Location, list[str]]:
    """Reads a manifest file.

    Returns:
        The prefix, and the keys relative to it.

    Raises:
        ServiceError: ``ValidationException``, if the text is no manifest.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise validation(f"Data download failed: The manifest is not JSON: {error}.") from error
    match entries:
        case [{"prefix": str(prefix)}, *names] if all(isinstance(name, str) for name in names):
            return Location.parse(prefix), [str(name) for name in names]
    raise validation(
        'Data download failed: A manifest is a list of {"prefix": "s3://…/"} and relative keys.'
    )


def _manifest(objects: Objects, place: Location) -> str:
    try:
        return objects.read(place).decode()
    except ClientError as error:
        raise _missing(error, place.uri) from error
    except UnicodeDecodeError as error:
        raise validation("Data download failed: The manifest is not UTF-8.") from error


def _missing(error: ClientError, uri: str) -> ServiceError:
    said = error.response["Error"]
    code, sentence = said.get("Code", ""), said.get("Message", "")
    return validation(
        f"Data download failed:{code} (404): {sentence}, object {uri[:_SHOWN_CHARACTERS]}"
    )
