"""Makes the first inference on a new model and checks what comes back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError

from lambdas.shared.log import log_event, logger
from lambdas.shared.settings import SmokeTestSettings
from lambdas.smoke_test import logic
from limner.contracts import triton

LOG = logger("smoke_test")
SETTINGS = SmokeTestSettings.from_env()
# The endpoint answers within 60 s; repeating is the state machine's business.
_RUNTIME = boto3.client(
    "sagemaker-runtime", config=Config(read_timeout=70, retries={"total_max_attempts": 1})
)


def handle(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Invokes the exact TargetModel and returns a report on its first image."""
    target_model = event["target_model"]
    try:
        answer = _RUNTIME.invoke_endpoint(
            EndpointName=SETTINGS.endpoint_name,
            TargetModel=target_model,
            ContentType=triton.RAW_TYPE,
            Accept="application/json",
            Body=json.dumps(logic.REQUEST).encode(),
        )
    except ClientError as error:
        told = error.response["Error"]
        body = triton.own_words(str(error.response.get("OriginalMessage", "")))
        raise logic.refusal(told["Code"], told.get("Message", ""), body) from error
    except HTTPClientError as error:  # no answer in time, or no connection
        raise logic.ModelNotReadyError(type(error).__name__) from error
    content = triton.unwrap(answer["Body"].read(), answer.get("ContentType", ""))
    report = logic.check_answer(content, SETTINGS.base_id)
    log_event(LOG, "model draws", request_id=event["request_id"], denoise_ms=report.denoise_ms)
    return asdict(report)
