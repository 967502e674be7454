"""Writes one status for all requests of a batch that are still its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
from botocore.config import Config

from lambdas.record_progress import logic
from lambdas.shared.dynamo import Table
from lambdas.shared.log import log_event, logger
from lambdas.shared.settings import RecordProgressSettings
from limner.contracts.statuses import RequestStatus
from limner.contracts.times import utc_now

LOG = logger("record_progress")
SETTINGS = RecordProgressSettings.from_env()
SIDE_BY_SIDE = 8
_DYNAMODB = boto3.client("dynamodb", config=Config(max_pool_connections=SIDE_BY_SIDE))
REQUESTS = Table(_DYNAMODB, SETTINGS.requests_table)


def handle(event: dict[str, Any], _context: object) -> dict[str, int]:
    """Returns how many were written, and how many belong to somebody else by now."""
    progress = logic.Progress(
        event["owner"], RequestStatus(event["status"]), event["job_name"], utc_now()
    )

    def write(item: dict[str, Any]) -> bool:
        return REQUESTS.update(
            {"request_id": item["request_id"]},
            update=progress.update,
            condition=logic.CONDITION,
            values=progress.values(item),
        )

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        written = list(pool.map(write, logic.planned(event["items"])))
    counts = {"written": sum(written), "lost": len(written) - sum(written)}
    log_event(LOG, "progress recorded", status=progress.status.value, **counts)
    return counts
