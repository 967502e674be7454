"""Puts Limner's stack on the laptop: the committed template, the Lambda functions and the base.

Everything here is idempotent and skips what has not changed, so that each ``limner up`` may do it.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.local.clients import make_client
from limner.local.json_types import Json
from limner.local.layout import REPOSITORY
from limner.local.objects import Location, Objects

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import StackTypeDef

STACK: Final = "limner-local"
TEMPLATE: Final = REPOSITORY / "infra" / "templates" / "local.template.json"
BASE: Final = REPOSITORY / "bases" / "tiny" / "model"
ASSETS_BUCKET: Final = "limner-local-assets"
# What a Lambda function may import (docs: design.md section 2).
_LAMBDA_SOURCES: Final = ("lambdas", "limner/contracts", "limner/__init__.py")
# The time of every file in the archive: the same code must give the same bytes.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_POLL_S: Final = 0.1
# CloudFormation repeats whole templates in its messages.
_SHOWN_CHARACTERS: Final = 600


def deploy_stack(
    endpoint_url: str,
    deadline: float,
    *,
    template: Path = TEMPLATE,
    stack: str = STACK,
    base: Path = BASE,
    sources: Path = REPOSITORY,
) -> dict[str, str]:
    """Creates or updates the stack, and uploads what it needs.

    Args:
        endpoint_url: Of a running laptop.
        deadline: ``time.monotonic()`` by which the stack must be there.
        template: The CloudFormation template.
        stack: Name of the stack.
        base: The folder of the base, uploaded if the stack has the outputs BucketName and BaseId.
        sources: Where the Lambda functions' code lies, as in the repository.

    Returns:
        The stack's outputs.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, with CloudFormation's reason.
    """
    if not template.is_file():
        raise LimnerError("LAPTOP_START_FAILED", f"There is no template {template}: make asl.")
    objects = Objects(endpoint_url)
    body = template.read_text()
    offered = {
        "AssetsBucketName": ASSETS_BUCKET,
        "LambdaCodeKey": upload_lambdas(objects, sources),
    }
    wanted = json.loads(body).get("Parameters", {})
    parameters = {name: value for name, value in offered.items() if name in wanted}
    # Above 51,200 bytes CloudFormation takes a template by its place in S3 only.
    url = f"{endpoint_url}/{ASSETS_BUCKET}/{_upload_template(objects, body)}"
    found = _put_stack(
        make_client("cloudformation", endpoint_url), stack, url, parameters, deadline
    )
    outputs = {item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", [])}
    if {"BucketName", "BaseId"} <= outputs.keys():
        target = Location(outputs["BucketName"], keys.base_prefix(outputs["BaseId"]))
        sync_folder(objects, base, target)
    return outputs


def upload_lambdas(objects: Objects, sources: Path) -> str:
    """Uploads the functions' code, unless the same code is there; returns its key."""
    objects.client.create_bucket(Bucket=ASSETS_BUCKET)
    return _upload_asset(objects, zip_sources(sources), "lambda", "zip")


def _upload_template(objects: Objects, body: str) -> str:
    return _upload_asset(objects, body.encode(), "template", "json")


def _upload_asset(objects: Objects, content: bytes, kind: str, suffix: str) -> str:
    key = f"{kind}/{hashlib.sha256(content).hexdigest()}.{suffix}"
    if not any(objects.keys(Location(ASSETS_BUCKET, key))):
        objects.client.put_object(Bucket=ASSETS_BUCKET, Key=key, Body=content)
    return key


def zip_sources(sources: Path) -> bytes:
    """The Lambda functions and what they may import, as a zip that depends on the code alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(_lambda_files(sources)):
            info = zipfile.ZipInfo(path.relative_to(sources).as_posix(), _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    return buffer.getvalue()


def sync_folder(objects: Objects, folder: Path, target: Location) -> int:
    """Makes a prefix in S3 equal to a folder; the ETag of a plain object is its MD5.

    Returns:
        Number of files uploaded.
    """
    pages = objects.client.get_paginator("list_objects_v2").paginate(
        Bucket=target.bucket, Prefix=target.key
    )
    there = {
        item["Key"]: item["ETag"].strip('"') for page in pages for item in page.get("Contents", [])
    }
    uploaded = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        location = target.below(path.relative_to(folder).as_posix())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _md5).hexdigest()
        if there.pop(location.key, None) != digest:
            objects.upload(path, location)
            uploaded += 1
    for key in there:
        objects.delete(Location(target.bucket, key))
    return uploaded


def _md5() -> Json:
    return hashlib.md5(usedforsecurity=False)


def _lambda_files(sources: Path) -> Iterator[Path]:
    for name in _LAMBDA_SOURCES:
        path = sources / name
        found = [path] if path.is_file() else path.rglob("*")
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def _put_stack(
    client: CloudFormationClient,
    stack: str,
    url: str,
    parameters: dict[str, str],
    deadline: float,
) -> StackTypeDef:
    found = _find_stack(client, stack)
    # A stack whose creation failed cannot be updated, on AWS neither.
    if found is not None and found["StackStatus"] in ("ROLLBACK_COMPLETE", "CREATE_FAILED"):
        client.delete_stack(StackName=stack)
        found = _wait(client, stack, deadline)
    put = client.create_stack if found is None else client.update_stack
    try:
        put(
            StackName=stack,
            TemplateURL=url,
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value}
                for name, value in parameters.items()
            ],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
        )
    except ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise _failed(error) from error
    found = _wait(client, stack, deadline)
    if found is None or found["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise LimnerError("LAPTOP_START_FAILED", f"Stack {stack}: {_reasons(client, stack)}")
    return found


def _find_stack(client: CloudFormationClient, stack: str) -> StackTypeDef | None:
    try:
        (found,) = client.describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError":
            return None
        raise _failed(error) from error
    return None if found["StackStatus"] == "DELETE_COMPLETE" else found


def _failed(error: ClientError) -> LimnerError:
    text = str(error)
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return LimnerError("LAPTOP_START_FAILED", f"CloudFormation: {shown}")


def _wait(client: CloudFormationClient, stack: str, deadline: float) -> StackTypeDef | None:
    while True:
        found = _find_stack(client, stack)
        if found is None or not found["StackStatus"].endswith("_IN_PROGRESS"):
            return found
        if time.monotonic() > deadline:
            raise LimnerError("LAPTOP_START_FAILED", f"Stack {stack} is not there in time.")
        time.sleep(_POLL_S)


def _reasons(client: CloudFormationClient, stack: str) -> str:
    pages = client.get_paginator("describe_stack_events").paginate(StackName=stack)
    failures = [
        f"{event.get('LogicalResourceId')}: {event.get('ResourceStatusReason')}"
        for page in pages
        for event in page["StackEvents"]
        if event.get("ResourceStatus", "").endswith("_FAILED")
    ]
    return "; ".join(failures) or "it did not complete"
