"""Starts what waits; called by the table's stream, by a schedule, and when executions end.

What the function may do, and no more:

=========================  =============================================
dynamodb:Query             index ``queue`` of the table of requests
dynamodb:GetItem           table of requests
dynamodb:UpdateItem        table of requests
states:StartExecution      both machines
states:DescribeExecution   executions of both machines
=========================  =============================================
"""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config

from lambdas.dispatch import logic
from lambdas.dispatch.gate import Limits
from lambdas.dispatch.gate_row import GateRow
from lambdas.dispatch.round import Round
from lambdas.dispatch.waiting import Waiting
from lambdas.shared import metrics
from lambdas.shared.clock import Clock
from lambdas.shared.dynamo import Table
from lambdas.shared.executions import Executions, Machines
from lambdas.shared.log import log_event, logger
from lambdas.shared.settings import DispatchSettings

LOG = logger("dispatch")
SETTINGS = DispatchSettings.from_env()
_REQUESTS = Table(boto3.client("dynamodb"), SETTINGS.requests_table)
# Refusals for rate are repeated by us, within the invocation's time.
_STATES = boto3.client("stepfunctions", config=Config(retries={"total_max_attempts": 2}))
RULES = logic.Rules(
    limits=Limits(
        max_instances=SETTINGS.max_instances,
        launches_per_second=SETTINGS.launches_per_second,
        burst=SETTINGS.burst,
        daily_launches=SETTINGS.daily_launches,
        user_active=SETTINGS.user_active,
    ),
    batch_from=SETTINGS.batch_from,
    batch_size=SETTINGS.batch_size,
    batch_instances=SETTINGS.batch_instances,
    lease_s=SETTINGS.lease_s,
)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's
    """Makes a round; the answer's batchItemFailures are for the stream."""
    clock = Clock.of_context(context)
    machines = Machines(SETTINGS.onboard_machine_arn, SETTINGS.batch_machine_arn)
    round_ = Round(
        Waiting(_REQUESTS, clock, context.aws_request_id, SETTINGS.lease_s),
        GateRow(_REQUESTS, clock),
        Executions(_STATES, machines, clock),
        RULES,
        clock,
        LOG,
    )
    trigger = logic.read_event(event)
    if trigger.ended:
        round_.ended(trigger.ended)
    answer: dict[str, Any] = {
        "batchItemFailures": [{"itemIdentifier": number} for number in trigger.poison]
    }
    if not trigger.look:
        return answer
    tally = round_.run()
    figures = {**tally.figures(clock.now_ms()), metrics.QUEUED_REQUESTS: trigger.fresh}
    metrics.emit(SETTINGS.stage, clock.now_ms(), figures)
    log_event(LOG, "round", poison=len(trigger.poison), bad=tally.bad_rows, refusal=tally.refusal)
    return {**answer, "launched": tally.launched, "left": len(tally.left)}
