"""Keeps as many workers as the queue is worth.

::

    slot 0   w0-<period> ── runs ──────────────┐ idle ── ended
    slot 1        w1-<period> ── runs ──┐ failed ········ not before the next period
                                        └ the name is taken: StartExecution refuses it

A worker's execution is named after its slot and the present period of some minutes. So a slot is
started at most once in a period, whoever calls, and however often: a worker that fails at once
cannot be started in a loop. Nothing is written down.
"""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from lambdas.dispatch.logic import Rules
from lambdas.shared.clock import Clock
from lambdas.shared.executions import TOO_MANY, Executions, Start
from lambdas.shared.inputs import SCHEMA_VERSION
from lambdas.shared.log import log_event

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

PERIOD_S: Final = 300
# One page; more workers than this are no setting (infra.settings).
_MOST: Final = 100


class Workers:
    """The executions of the machine of workers.

    Args:
        states: A client of Step Functions.
        executions: Starts them.
        rules: How many there may be.
        clock: The invocation's clock.
        log: The function's log.
    """

    def __init__(
        self,
        states: SFNClient,
        executions: Executions,
        rules: Rules,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._states = states
        self._executions = executions
        self._rules = rules
        self._clock = clock
        self._log = log

    def keep(self, waiting: int, *, spare_ms: int) -> int:
        """Starts what is missing; workers end by themselves.

        The list of executions is a moment late: after a start that it does not know yet, another
        one in the next period is one too many, and ends when it is idle.

        Args:
            waiting: Users that wait for a worker.
            spare_ms: Milliseconds that the caller needs afterwards.

        Returns:
            How many were started.

        Raises:
            ClientError: If Step Functions refuses for another reason than the rate.
        """
        wanted = min(self._rules.workers, math.ceil(waiting / self._rules.worker_backlog))
        if not wanted or self._clock.remaining_ms() < spare_ms:
            return 0
        arn = self._executions.machines.worker_arn
        try:
            running = self._states.list_executions(
                stateMachineArn=arn, statusFilter="RUNNING", maxResults=_MOST
            )["executions"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in TOO_MANY:
                raise
            return 0  # the next round asks again
        taken = {execution["name"].partition("-")[0] for execution in running}
        missing, started = max(0, wanted - len(running)), 0
        period = self._clock.now_ms() // (PERIOD_S * 1000)
        free = [f"w{slot}" for slot in range(self._rules.workers) if f"w{slot}" not in taken]
        # Of the first free slots only: one that is used up in this period counts, or an image that
        # fails at once would be started in all of them.
        for slot in free[:missing]:
            if self._clock.remaining_ms() < spare_ms:
                break
            name = f"{slot}-{period}"
            document = json.dumps(
                {"schema_version": SCHEMA_VERSION, "batch_id": name, "attempt": 1},
                separators=(",", ":"),
            )
            start = self._executions.start_at(arn, name, document, spare_ms=spare_ms)
            if start is Start.THROTTLED:
                break
            started += start is Start.STARTED
            log_event(self._log, "worker", execution=name, outcome=start.name)
        return started
