"""Streams a trained artifact out of S3 and judges its manifest."""

from __future__ import annotations

from typing import Any

import boto3

from lambdas.inspect_artifact import archive, logic
from lambdas.shared.log import log_event, logger
from lambdas.shared.objects import get_object
from lambdas.shared.settings import InspectArtifactSettings
from limner.contracts.errors import LimnerError

LOG = logger("inspect_artifact")
SETTINGS = InspectArtifactSettings.from_env()
_S3 = boto3.client("s3")


def handle(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Returns the artifact's figures, or fails with what is wrong with it."""
    request_id = event["request_id"]
    bucket, _, key = event["artifact"].partition("/")
    answer = get_object(_S3, bucket, key)
    if answer is None:
        raise LimnerError("ARTIFACT_INVALID", "The training left no artifact.")
    with answer["Body"] as body:
        manifest = archive.read_manifest(body)
    metrics = logic.judge(manifest, request_id, SETTINGS.base_id, SETTINGS.least)
    log_event(LOG, "artifact inspected", request_id=request_id, **metrics)
    return {"metrics": metrics}
