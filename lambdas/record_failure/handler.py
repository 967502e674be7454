"""Ends the request of a failed execution; called by the machine, and by the rule on its end."""

from __future__ import annotations

import json
import time
from typing import Any

import boto3

from lambdas.record_failure import logic
from lambdas.record_failure.ledger import Ledger
from lambdas.shared import metrics
from lambdas.shared.dynamo import Table
from lambdas.shared.log import log_event, logger
from lambdas.shared.settings import RecordFailureSettings
from limner.contracts.statuses import RequestStatus

LOG = logger("record_failure")
SETTINGS = RecordFailureSettings.from_env()
_DYNAMODB = boto3.client("dynamodb")
_SNS = boto3.client("sns")
LEDGER = Ledger(Table(_DYNAMODB, SETTINGS.models_table), Table(_DYNAMODB, SETTINGS.requests_table))


def handle(event: dict[str, Any], _context: object) -> dict[str, Any] | None:
    """Records the failure and returns the body of its notification; None if there is none."""
    ending = logic.read_ending(event)
    if ending is None:
        log_event(LOG, "execution without a request")
        return None
    record = LEDGER.read(ending.request_id)
    ending = logic.as_wished(record, ending)
    verdict = logic.judge(record, ending)
    log_event(LOG, verdict.name, request_id=ending.request_id, code=ending.failure.code)
    if record is None or verdict is logic.Verdict.NOT_OURS:
        if ending.by_rule:
            return None
        raise logic.NotOursError(ending.request_id)
    if verdict is logic.Verdict.END_NOW:
        LEDGER.end(ending)
        _count(ending)
        record |= {"error": ending.failure.to_error(), "unannounced": True}
    LEDGER.release(record)
    body = logic.failed_body(record, record.get("error") or ending.failure.to_error())
    # The machine announces its failures itself; what it did not come to, nobody else would.
    if ending.by_rule and record.get("unannounced"):
        _SNS.publish(
            TopicArn=SETTINGS.topic_arn,
            Message=json.dumps(body),
            MessageAttributes={"type": {"DataType": "String", "StringValue": logic.FAILED_EVENT}},
        )
        LEDGER.mark_announced(ending.request_id)
    return body


def _count(ending: logic.Ending) -> None:
    """Once a request, for the alarm; who wanted the end has not failed."""
    if ending.status is RequestStatus.FAILED:
        fault = str(ending.failure.to_error()["fault"])
        counted = {metrics.FAILED_REQUESTS: 1}
        metrics.emit(SETTINGS.stage, time.time_ns() // 1_000_000, counted, fault=fault)
