"""Registers requests whose photos are still to come, and hands them over when they are there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.register.logic import Desk
from lambdas.register.stores import EventBus, PhotoBucket, RequestBook
from lambdas.shared.dynamo import Table
from lambdas.shared.log import log_event, logger
from lambdas.shared.settings import RegisterSettings
from limner.contracts.errors import LimnerError
from limner.contracts.times import utc_now

LOG = logger("register")
SETTINGS = RegisterSettings.from_env()
_AT_ONCE: Final = 8
_THROTTLES: Final = ("Throttl", "SlowDown", "ProvisionedThroughput", "TooManyRequests")
_CONFIG: Final = Config(
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=_AT_ONCE,
    signature_version="s3v4",
    # Forms for the bucket's host in its own region: the global host, botocore's default for them,
    # answers other regions' new buckets with a redirect, and regions that must be opted into not at
    # all. At an IP address, as on the laptop, botocore writes paths all the same.
    s3={"addressing_style": "virtual"},
)
_POOL = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="photos")
DESK = Desk(
    RequestBook(Table(boto3.client("dynamodb"), SETTINGS.requests_table)),
    PhotoBucket(boto3.client("s3", config=_CONFIG), SETTINGS.bucket),
    EventBus(boto3.client("events"), SETTINGS.bus_name),
    now=utc_now,
    epoch_s=lambda: int(time.time()),
    each=_POOL.map,
)


def handle(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Answers ``register`` and ``submit``; what a caller can mend comes back as its error."""
    action = "submit" if event.get("action") == "submit" else "register"
    try:
        answer = DESK.answer(event)
    except LimnerError as error:
        log_event(LOG, action, code=error.code)
        return error.to_dict()
    except BotoCoreError as error:  # no answer at all: the same call mends that
        name = type(error).__name__
        log_event(LOG, action, code=name)
        return LimnerError("AWS_ERROR", f"{name}.").to_dict()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        log_event(LOG, action, code=code, operation=error.operation_name)
        kind = "THROTTLED" if code.startswith(_THROTTLES) else "AWS_ERROR"
        return LimnerError(kind, f"{error.operation_name}: {code}.").to_dict()
    log_event(LOG, action, request_id=answer["request_id"], status=answer["status"])
    return answer
