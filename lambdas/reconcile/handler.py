"""Repairs what stands still; called by a schedule, and when executions end badly.

What the function may do, and no more:

============================  ==================================================
dynamodb:Query                index ``open`` of the table of requests
dynamodb:GetItem              table of requests
dynamodb:UpdateItem           both tables, also as members of transactions
states:DescribeExecution      executions of both machines
states:StopExecution          executions of both machines
sagemaker:DescribeTrainingJob training-job/limner-*
sagemaker:StopTrainingJob     training-job/limner-*
sns:Publish                   the topic
============================  ==================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import boto3

from lambdas.dispatch.gate_row import GateRow
from lambdas.reconcile.jobs import Jobs
from lambdas.reconcile.notes import Notes
from lambdas.reconcile.repairs import Repairs, as_message
from lambdas.reconcile.sweep import Sweep
from lambdas.shared import metrics
from lambdas.shared.clock import Clock
from lambdas.shared.dynamo import Table
from lambdas.shared.executions import Executions, Machines
from lambdas.shared.log import log_event, logger
from lambdas.shared.settings import ReconcileSettings

LOG = logger("reconcile")
SETTINGS = ReconcileSettings.from_env()
_DYNAMODB = boto3.client("dynamodb")
_STATES = boto3.client("stepfunctions")
_SAGEMAKER = boto3.client("sagemaker")
_SNS = boto3.client("sns")


MACHINES = Machines(
    SETTINGS.onboard_machine_arn, SETTINGS.batch_machine_arn, SETTINGS.worker_machine_arn
)


def handle(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Makes a run, or settles the requests of the execution that the event tells of."""
    clock = Clock.of_context(context)
    sweep = _sweep(clock)
    detail = event.get("detail") or {}
    tally = sweep.execution_ended(detail) if "executionArn" in detail else sweep.run()
    found = {metrics.STUCK_REQUESTS: tally.stuck, metrics.REPAIRED_REQUESTS: tally.repaired}
    metrics.emit(SETTINGS.stage, clock.now_ms(), found)
    log_event(LOG, "run", **asdict(tally))
    return asdict(tally)


def _sweep(clock: Clock) -> Sweep:
    requests = Table(_DYNAMODB, SETTINGS.requests_table)
    notes = Notes(requests)
    return Sweep(
        requests=requests,
        notes=notes,
        repairs=Repairs(Table(_DYNAMODB, SETTINGS.models_table), requests, notes, _publish, clock),
        executions=Executions(_STATES, MACHINES, clock),
        jobs=Jobs(_SAGEMAKER, SETTINGS.job_prefix),
        gate_row=GateRow(requests, clock),
        grace_s=SETTINGS.grace_s,
        clock=clock,
        log=LOG,
    )


def _publish(body: Mapping[str, Any]) -> None:
    _SNS.publish(**as_message(SETTINGS.topic_arn, body))
