"""Reads each task's result, and looks at the artifact that it speaks of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import boto3
from botocore.config import Config

from lambdas.collect_results import logic
from lambdas.collect_results.shelf import Shelf, earlier_prefixes
from lambdas.shared.dynamo import Table
from lambdas.shared.log import log_event, logger
from lambdas.shared.pace import PaceRow
from lambdas.shared.settings import CollectResultsSettings
from limner.contracts import keys
from limner.contracts.outcomes import PLANNED
from limner.contracts.packing import PastRuns

LOG = logger("collect_results")
SETTINGS = CollectResultsSettings.from_env()
SIDE_BY_SIDE = 8
_CONFIG = Config(max_pool_connections=SIDE_BY_SIDE)
SHELF = Shelf(boto3.client("s3", config=_CONFIG), SETTINGS.bucket, LOG)
REQUESTS = Table(boto3.client("dynamodb", config=_CONFIG), SETTINGS.requests_table)


def handle(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Returns all items with their outcomes; asking twice gives the same answer.

    What the fine-tunes of this attempt have taken is counted, once, for later plans.
    """
    error = logic.error_of_missing(event["job_name"], event["failure"])
    # The earlier ones too: they were taken when this attempt was packed, if it came to that.
    prefixes = [keys.batch_prefix(event["batch_id"], event["attempt"]), *earlier_prefixes(event)]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        collected = list(pool.map(partial(_collect, prefixes, error), event["items"]))
    # Those of earlier attempts ran on other machines, perhaps, and under another job's name.
    ours = (ended.run for ended in collected if ended.prefix == prefixes[0])
    runs = PastRuns.of(run for run in ours if run is not None)
    PaceRow(REQUESTS, event.get("pace_row", ""), LOG).add(event["job_name"], runs)
    items = [ended.item for ended in collected]
    counts = Counter(str(item["outcome"]) for item in items)
    log_event(LOG, "results collected", batch_id=event["batch_id"], **counts)
    return {"items": items}


def _collect(prefixes: list[str], error: Mapping[str, str], item: logic.Item) -> logic.Ended:
    if item["outcome"] != PLANNED:
        return logic.Ended(dict(item), "")
    if found := SHELF.find(item, prefixes):
        return found
    # Before it goes back to the queue, to be trained and paid for once more.
    if (REQUESTS.read({"request_id": item["request_id"]}) or {}).get("cancel_requested"):
        return logic.Ended(logic.cancelled(item), "")
    return logic.Ended(logic.missing(item, error), "")
