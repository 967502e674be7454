"""Reads each task's result, and looks at the artifact that it speaks of."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import boto3
from botocore.config import Config

from lambdas.collect_results import logic
from lambdas.shared.log import log_event, logger
from lambdas.shared.objects import get_object
from lambdas.shared.settings import CollectResultsSettings
from limner.contracts import keys
from limner.contracts.outcomes import PLANNED

LOG = logger("collect_results")
SETTINGS = CollectResultsSettings.from_env()
SIDE_BY_SIDE = 8
_CHUNK_BYTES = 1024**2
_S3 = boto3.client("s3", config=Config(max_pool_connections=SIDE_BY_SIDE))


def handle(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Returns all items with their outcomes; asking twice gives the same answer."""
    error = logic.error_of_missing(event["job_name"], event["failure"])
    out = f"{keys.batch_prefix(event['batch_id'], event['attempt'])}out/"
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        items = list(pool.map(partial(_collect, out, error), event["items"]))
    counts = Counter(str(item["outcome"]) for item in items)
    log_event(LOG, "results collected", batch_id=event["batch_id"], **counts)
    return {"items": items}


def _collect(out: str, error: Mapping[str, str], item: logic.Item) -> logic.Item:
    if item["outcome"] != PLANNED:
        return item
    folder = f"{out}{item['request_id']}/"
    result = logic.read_result(item["request_id"], _result(f"{folder}result.json"))
    if result is None:
        return logic.missing(item, error)
    if not result.trained:
        return logic.failed(item, result)
    artifact = f"{folder}model.tar.gz"
    size, digest = _artifact(artifact)
    if not logic.is_sound(size, digest, result):
        log_event(LOG, "artifact does not match", request_id=item["request_id"], size=size)
        return logic.missing(item, error)
    return logic.trained(item, artifact)


def _result(key: str) -> bytes | None:
    answer = get_object(_S3, SETTINGS.bucket, key)
    return answer["Body"].read(logic.MAX_RESULT_BYTES + 1) if answer else None


def _artifact(key: str) -> tuple[int | None, str | None]:
    """Size of the archive and its SHA-256, each None where there is none to be had."""
    answer = get_object(_S3, SETTINGS.bucket, key)
    if answer is None:
        return None, None
    size, body = answer["ContentLength"], answer["Body"]
    if size > logic.MAX_HASHED_BYTES:
        body.close()
        return size, None
    digest = hashlib.sha256()
    for chunk in body.iter_chunks(_CHUNK_BYTES):
        digest.update(chunk)
    return size, digest.hexdigest()
