"""Draws an execution on its state machine's graph, as one SVG file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from limner.graph.history import fold
from limner.graph.machine import read_machine
from limner.graph.svg import render

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

__all__ = ["draw", "draw_execution"]


def draw(
    definition: Mapping[str, Any],
    execution: Mapping[str, Any],
    events: Iterable[Mapping[str, Any]],
    *,
    now: datetime | None = None,
) -> str:
    """Draws an execution from what is known of it; pure and deterministic.

    Args:
        definition: The state machine's definition, as parsed JSON.
        execution: The answer of DescribeExecution.
        events: All events of GetExecutionHistory.
        now: The time until which a running execution is measured, if it is to be.

    Returns:
        A self-contained SVG document.
    """
    return render(read_machine(definition), fold(definition, execution, events, now=now))


def draw_execution(client: SFNClient, execution_arn: str) -> str:
    """Draws an execution that Step Functions knows, on the definition that it runs.

    Args:
        client: A boto3 client of Step Functions.
        execution_arn: The execution's ARN.

    Returns:
        A self-contained SVG document.

    Raises:
        botocore.exceptions.ClientError: Step Functions refused a call, for example with
            ``ExecutionDoesNotExist``; AWS keeps histories for 90 days.
    """
    execution = client.describe_execution(executionArn=execution_arn)
    machine = client.describe_state_machine_for_execution(executionArn=execution_arn)
    pages = client.get_paginator("get_execution_history").paginate(executionArn=execution_arn)
    events = [event for page in pages for event in page["events"]]
    return draw(json.loads(machine["definition"]), execution, events, now=datetime.now(UTC))
