"""Reads configs and lists photos, plans the job, and writes its files."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import boto3
from botocore.config import Config

from lambdas.collect_results.shelf import Shelf, earlier_prefixes
from lambdas.pack_tasks import logic
from lambdas.shared.dynamo import Table
from lambdas.shared.log import log_event, logger
from lambdas.shared.objects import get_object
from lambdas.shared.pace import PaceRow
from lambdas.shared.settings import PackTasksSettings
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.outcomes import PLANNED
from limner.contracts.packing import fit

LOG = logger("pack_tasks")
SETTINGS = PackTasksSettings.from_env()
SIDE_BY_SIDE = 16
_S3 = boto3.client("s3", config=Config(max_pool_connections=SIDE_BY_SIDE))
SHELF = Shelf(_S3, SETTINGS.bucket, LOG)
REQUESTS = Table(boto3.client("dynamodb"), SETTINGS.requests_table)


def handle(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Packs what is planned and not done yet; returns all items, and the plan."""
    batch = logic.Batch(event["batch_id"], event["attempt"], event["longest_s"])
    # A job may have finished some of its tasks before it was lost: they are paid for.
    before = earlier_prefixes(event)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        packed = list(pool.map(partial(_pack, before), event["items"]))
    runs = PaceRow(REQUESTS, event.get("pace_row", ""), LOG).read()
    plan = logic.make_plan(
        batch,
        SETTINGS.bucket,
        [one for one in packed if isinstance(one, logic.Material)],
        pace=fit(runs, SETTINGS.pace),
        most_instances=logic.most_instances(event.get("asked", {}), SETTINGS.batch_instances),
        target_s=SETTINGS.batch_target_s,
    )
    if plan.tasks:
        _put(f"{batch.prefix}photos.manifest", plan.photos_manifest())
        _put(f"{batch.prefix}tasks/tasks.jsonl", plan.tasks_jsonl())
    answer = plan.answer(batch, event["job_name"])
    log_event(
        LOG,
        "batch packed",
        batch_id=batch.batch_id,
        tasks=len(plan.tasks),
        past_runs=int(runs.count),
    )
    items = [one.item if isinstance(one, logic.Material) else one for one in packed]
    return {"items": items, "plan": answer}


def _pack(before: list[str], item: logic.Item) -> logic.Material | Mapping[str, Any]:
    """What a planned request is trained from; the item as it is to go on, if nothing is."""
    if item["outcome"] != PLANNED:
        return item
    if done := SHELF.find(item, before):
        log_event(LOG, "done by an earlier job", request_id=item["request_id"])
        return done.item
    try:
        config = logic.read_config(_config(item["request_id"]))
        photos = _photos(item["user_id"], item["request_id"])
    except LimnerError as error:
        log_event(LOG, "request not packed", request_id=item["request_id"], code=error.code)
        return logic.failed(item, error)
    return logic.Material(item, config, photos)


def _config(request_id: str) -> bytes | None:
    key = f"{keys.config_prefix(request_id)}{keys.CONFIG_FILE}"
    answer = get_object(_S3, SETTINGS.bucket, key)
    return answer["Body"].read(logic.MAX_CONFIG_BYTES + 1) if answer else None


def _photos(user_id: str, request_id: str) -> list[str]:
    listed = _S3.list_objects_v2(
        Bucket=SETTINGS.bucket,
        Prefix=keys.uploads_prefix(user_id, request_id),
        MaxKeys=logic.MAX_FILES,
    )
    found = [entry["Key"] for entry in listed.get("Contents", ())]
    return logic.check_photos(found, is_all=not listed.get("IsTruncated"))


def _put(key: str, body: bytes) -> None:
    _S3.put_object(Bucket=SETTINGS.bucket, Key=key, Body=body)
