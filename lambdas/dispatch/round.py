"""One round of the queue: as many launches as the gate and the invocation's time allow.

::

    look ── stranded? start again ──┐
      ┌─────────────────────────────┘
      └> choose ── gate shut? wait, or end ── lease ── enter the gate ── start ──> choose …
                                                │             │            │
         a crash here leaves:              a lease that    a holder    an execution that
                                           ends by itself  (stranded)  claims its requests

Every write is conditional and nothing is remembered between rounds, so a round may end anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from botocore.exceptions import ClientError

from lambdas.dispatch.gate import Gate, Holder, Reason, Refusal, admit, day_of, release, withdraw
from lambdas.dispatch.gate_row import GateRow
from lambdas.dispatch.logic import (
    Candidate,
    Launch,
    Rules,
    next_launch,
    stranded,
    waits_for_worker,
)
from lambdas.dispatch.waiting import Lease, Waiting
from lambdas.shared import metrics
from lambdas.shared.clock import Clock, iso, to_ms
from lambdas.shared.executions import Executions, Start, is_running, refused
from lambdas.shared.log import log_event

# What a launch needs at the end of an invocation, so that it is not cut off between its writes.
SPARE_MS: Final = 8_000
# A lease that is about to end is no licence to start.
_LEASE_MARGIN_MS: Final = 2_000


@dataclass
class Tally:
    """What a round has done.

    Attributes:
        executions: Executions started.
        launched: Requests that they have.
        resumed: Executions started again for a dispatcher that died.
        throttled: Starts that were refused for rate.
        bad_rows: Rows that no request can have.
        left: What still waits.
        for_workers: How many users waited for a worker.
        refusal: Why the round ended early.
        gate: The gate at the end.
    """

    executions: int = 0
    launched: int = 0
    resumed: int = 0
    throttled: int = 0
    bad_rows: int = 0
    left: list[Candidate] = field(default_factory=list)
    for_workers: int = 0
    refusal: str = ""
    gate: Gate = field(default_factory=Gate)

    def figures(self, now_ms: int) -> dict[str, int]:
        """The metrics of the round."""
        now = iso(now_ms)
        # What a worker has, or has trained, does not wait any more.
        waiting = [c for c in self.left if c.lease_until <= now and not c.is_trained]
        ages_ms = [now_ms - to_ms(candidate.queued_at) for candidate in waiting]
        return {
            metrics.LAUNCHED: self.launched,
            metrics.THROTTLED: self.throttled,
            metrics.QUEUE_DEPTH: len(waiting),
            metrics.OLDEST_QUEUED_AGE: max(0, *ages_ms, 0) // 1000,
            metrics.HOLDERS_IN_USE: len(self.gate.holders),
            metrics.LAUNCHES_TODAY: self.gate.launched_on(day_of(now_ms)),
        }


class Round:
    """One round.

    Args:
        waiting: The queue.
        gate_row: The gate.
        executions: Step Functions.
        rules: How launches are made.
        clock: The invocation's clock.
        log: The function's log.
    """

    def __init__(
        self,
        waiting: Waiting,
        gate_row: GateRow,
        executions: Executions,
        rules: Rules,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._waiting = waiting
        self._gate_row = gate_row
        self._executions = executions
        self._rules = rules
        self._clock = clock
        self._log = log
        self._tally = Tally()

    def ended(self, name: str) -> None:
        """Frees the place of an execution that is over."""
        self._gate_row.change(lambda gate: release(gate, name))

    def run(self) -> Tally:
        """Starts what may start now.

        Raises:
            ClientError: If AWS refuses a call, or nobody knows what became of it; the next round
                goes on from there.
        """
        tally = self._tally
        tally.left, bad = self._waiting.look()
        tally.bad_rows = sum(self._waiting.refuse(item) for item in bad)
        now = self._clock.now()
        tally.for_workers = waits_for_worker(tally.left, self._rules, now)
        tally.gate = self._gate_row.read()
        for name in stranded(tally.left, tally.gate, self._clock.now()):
            if not self._has_time() or tally.throttled:
                return tally
            self._resume(name, tally.gate.holders[name])
        while self._has_time():
            launch = next_launch(tally.left, tally.gate, self._rules, self._clock.now())
            if launch is None:
                break
            refusal = self._would_refuse(launch) or self._launch(launch)
            if tally.throttled:
                break  # the next trigger goes on, when the crowd has gone
            if refusal is not None and not self._outwait(refusal):
                tally.refusal = refusal.reason
                break
        tally.left = [c for c in tally.left if c.run.request_id not in tally.gate.requests()]
        return tally

    def _has_time(self) -> bool:
        return self._clock.remaining_ms() > SPARE_MS

    def _would_refuse(self, launch: Launch) -> Refusal | None:
        """Asks the gate as we know it, before anything is written."""
        now_ms = self._clock.now_ms()
        answer = admit(
            self._tally.gate,
            launch.name,
            launch.holder(now_ms),
            self._rules.limits,
            now_ms,
        )
        return answer if isinstance(answer, Refusal) else None

    def _outwait(self, refusal: Refusal) -> bool:
        """Waits for the rate, if this invocation lives long enough.

        Returns:
            Whether another try is worth it.
        """
        gate, limits = self._tally.gate, self._rules.limits
        room = refusal.reason is Reason.INSTANCES and gate.instances < limits.max_instances
        if refusal.reason is Reason.USER or room:
            return True  # others were faster; the gate as we know it now tells what they took
        wait_ms = refusal.wait_ms
        if refusal.reason is not Reason.RATE or self._clock.remaining_ms() <= wait_ms + SPARE_MS:
            return False
        self._clock.pause(wait_ms / 1000)
        return True

    def _launch(self, wanted: Launch) -> Refusal | None:
        """Lease, gate, start."""
        leases = [lease for c in wanted.candidates if (lease := self._waiting.lease(c))]
        kept = {lease.candidate.run for lease in leases}
        self._drop([c for c in wanted.candidates if c.run not in kept])
        if not leases:
            return None
        launch = Launch.of(
            [lease.candidate for lease in leases], batch=wanted.batch, instances=wanted.instances
        )
        holder = launch.holder(self._clock.now_ms())
        self._tally.gate, refusal = self._gate_row.enter(launch.name, holder, self._rules.limits)
        if refusal is not None:
            self._give_back(leases)
            return refusal
        if self._clock.now_ms() > min(lease.until_ms for lease in leases) - _LEASE_MARGIN_MS:
            # Too slow: whoever looks next starts this very execution (stranded).
            return None
        self._start(launch, leases)
        return None

    def _start(self, launch: Launch, leases: list[Lease]) -> None:
        try:
            start = self._executions.start(
                launch.name, launch.document(), batch=launch.batch, spare_ms=SPARE_MS
            )
        except ClientError as error:
            # A definite no leaves nothing behind. After a 5xx nobody knows: the holder stays.
            if refused(error):
                self._undo(launch, leases)
            raise
        match start:
            case Start.STARTED:
                self._tally.executions += 1
                self._tally.launched += len(launch.candidates)
                log_event(
                    self._log, "launched", execution=launch.name, requests=len(launch.candidates)
                )
            case Start.EXISTS:
                self._meet(launch)
            case Start.THROTTLED:
                self._tally.throttled += 1
                self._undo(launch, leases)

    def _resume(self, name: str, holder: Holder) -> None:
        """Starts a stranded holder's execution: the same name and input, so it starts once."""
        candidates = [self._waiting.read(run) for run in holder.runs]
        known = [candidate for candidate in candidates if candidate is not None]
        launch = Launch(name, holder.batch, tuple(known), holder.instances)
        if len(known) < len(candidates):
            # A request was erased: its batch cannot be told again what it was told.
            self._meet(launch)
            return
        start = self._executions.start(
            name, launch.document(), batch=holder.batch, spare_ms=SPARE_MS
        )
        log_event(self._log, "started again", execution=name, outcome=start.name)
        if start is Start.EXISTS:
            self._meet(launch)
        elif start is Start.STARTED:
            self._tally.resumed += 1
        else:
            self._tally.throttled += 1

    def _meet(self, launch: Launch) -> None:
        """An execution of this name is there, or was: it has its requests, or they go on anew."""
        arn = self._executions.machines.execution(launch.name, batch=launch.batch)
        if is_running(self._executions.describe(arn)):
            return
        self._drop(launch.candidates)
        for candidate in launch.candidates:
            again = self._waiting.next_attempt(candidate.run)
            log_event(
                self._log,
                "execution is over and has not touched its request",
                request_id=candidate.run.request_id,
                attempt=candidate.run.attempt,
                again=again,
            )
        self._tally.gate = self._gate_row.change(lambda gate: withdraw(gate, launch.name))

    def _undo(self, launch: Launch, leases: list[Lease]) -> None:
        self._tally.gate = self._gate_row.change(lambda gate: withdraw(gate, launch.name))
        self._give_back(leases)

    def _give_back(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._waiting.give_back(lease)

    def _drop(self, candidates: Sequence[Candidate]) -> None:
        """This round does not look at them again."""
        gone = {candidate.run.request_id for candidate in candidates}
        self._tally.left = [c for c in self._tally.left if c.run.request_id not in gone]
