"""Starts what waits; called by the table's stream, by a schedule, and when executions end.

What the function may do, and no more:

=========================  =============================================
dynamodb:Query             index ``queue`` of the table of requests
dynamodb:GetItem           table of requests
dynamodb:UpdateItem        table of requests
states:StartExecution      the machines
states:DescribeExecution   their executions
states:ListExecutions      the machine of workers
=========================  =============================================
"""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config

from lambdas.dispatch import logic
from lambdas.dispatch.gate import Limits
from lambdas.dispatch.gate_row import GateRow
from lambdas.dispatch.round import SPARE_MS, Round
from lambdas.dispatch.turn import Turn
from lambdas.dispatch.waiting import Waiting
from lambdas.dispatch.workers import Workers
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
MACHINES = Machines(
    SETTINGS.onboard_machine_arn, SETTINGS.batch_machine_arn, SETTINGS.worker_machine_arn
)
RULES = logic.Rules(
    limits=Limits(
        # The places of workers are theirs, whether they run or not.
        max_instances=SETTINGS.max_instances - SETTINGS.workers,
        launches_per_second=SETTINGS.launches_per_second,
        burst=SETTINGS.burst,
        daily_launches=SETTINGS.daily_launches,
        user_active=SETTINGS.user_active,
    ),
    batch_from=SETTINGS.batch_from,
    batch_size=SETTINGS.batch_size,
    batch_instances=SETTINGS.batch_instances,
    lease_s=SETTINGS.lease_s,
    workers=SETTINGS.workers,
    worker_backlog=SETTINGS.worker_backlog,
    worker_patience_s=SETTINGS.worker_patience_s,
)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's
    """Makes rounds, one invocation at a time; batchItemFailures are for the stream."""
    clock = Clock.of_context(context)
    trigger = logic.read_event(event)
    if trigger.ended:
        _round(clock, context.aws_request_id).ended(trigger.ended)
    answer: dict[str, Any] = {
        "batchItemFailures": [{"itemIdentifier": number} for number in trigger.poison]
    }
    if trigger.fresh:  # whoever makes the round
        arrived = {metrics.QUEUED_REQUESTS: trigger.fresh}
        metrics.emit(SETTINGS.stage, clock.now_ms(), arrived)
    turn = Turn(_REQUESTS, clock, context.aws_request_id)
    if not trigger.look or not turn.take():
        return answer
    launched, left, is_ours = 0, 0, True
    try:
        while is_ours:
            tally = _round(clock, context.aws_request_id).run()
            launched, left = launched + tally.launched, len(tally.left)
            metrics.emit(SETTINGS.stage, clock.now_ms(), tally.figures(clock.now_ms()))
            log_event(LOG, "round", bad=tally.bad_rows, left=left, refusal=tally.refusal)
            _workers(clock).keep(tally.for_workers, spare_ms=SPARE_MS)
            # Out of time, or refused by AWS: the next trigger goes on.
            if tally.throttled or clock.remaining_ms() < SPARE_MS:
                break
            is_ours = not turn.leave() and turn.take()
    finally:
        if is_ours:
            turn.drop()
    return {**answer, "launched": launched, "left": left}


def _workers(clock: Clock) -> Workers:
    return Workers(_STATES, Executions(_STATES, MACHINES, clock), RULES, clock, LOG)


def _round(clock: Clock, me: str) -> Round:
    return Round(
        Waiting(_REQUESTS, clock, me, SETTINGS.lease_s),
        GateRow(_REQUESTS, clock),
        Executions(_STATES, MACHINES, clock),
        RULES,
        clock,
        LOG,
    )
