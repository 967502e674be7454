"""Where the gate is kept: one row of the requests table, written under its fence.

::

    A   read fence 7 ── decide ── write if fence = 7 ── ok, fence 8
    B   read fence 7 ────── decide ────── write if fence = 7 ── refused: read again, decide again

A write whose reply was lost is refused when the SDK repeats it; the reading finds our holder
inside, and ``admit`` says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from lambdas.dispatch.gate import Gate, Holder, Limits, Refusal, Run, admit
from lambdas.shared.clock import Clock
from lambdas.shared.dynamo import Plain, Table
from limner.contracts import keys
from limner.contracts.errors import LimnerError

KEY: Final = {"request_id": keys.GATE_ROW}
# Each lost race means that somebody else has won one; so many in a row mean that something is off.
_TRIES: Final = 20
_PAUSE_S: Final = 0.05


class GateRow:
    """The row ``#gate``.

    Args:
        requests: Table of requests.
        clock: The invocation's clock.
    """

    def __init__(self, requests: Table, clock: Clock) -> None:
        self._requests = requests
        self._clock = clock

    def read(self) -> Gate:
        """The gate as it is now; a new one before its first write."""
        return to_gate(self._requests.read(KEY) or {})

    def enter(self, name: str, holder: Holder, limits: Limits) -> tuple[Gate, Refusal | None]:
        """Takes a place for an execution.

        Returns:
            The gate as it is now, and why the place was refused.
        """
        refusal: Refusal | None = None

        def decide(gate: Gate) -> Gate:
            nonlocal refusal
            answer = admit(gate, name, holder, limits, self._clock.now_ms())
            refusal = answer if isinstance(answer, Refusal) else None
            return gate if isinstance(answer, Refusal) else answer

        gate = self.change(decide)
        return gate, refusal

    def change(self, decide: Callable[[Gate], Gate]) -> Gate:
        """Writes what is decided, and decides anew as often as somebody else has written first.

        Args:
            decide: Makes the next gate; returns the gate it was given to write nothing.

        Returns:
            The gate as it is now.

        Raises:
            LimnerError: ``THROTTLED``, if others write all the time.
        """
        for _ in range(_TRIES):
            gate = self.read()
            after = decide(gate)
            if after is gate:
                return gate
            if self._write(after):
                return after
            self._clock.pause(random.uniform(0, _PAUSE_S))  # noqa: S311 - spreads a crowd
        raise LimnerError("THROTTLED", "The gate is written by too many at the same time.")

    def _write(self, gate: Gate) -> bool:
        item = to_item(gate)
        return self._requests.update(
            KEY,
            update="SET " + ", ".join(f"#{name} = :{name}" for name in item) + ", #fence = :next",
            condition="#fence = :fence" if gate.fence else "attribute_not_exists(#fence)",
            values={
                **{f":{name}": value for name, value in item.items()},
                ":next": gate.fence + 1,
                **({":fence": gate.fence} if gate.fence else {}),
            },
        )


def to_item(gate: Gate) -> dict[str, Plain]:
    """The gate's attributes, but for its fence."""
    return {
        "holders": {name: _holder_item(holder) for name, holder in gate.holders.items()},
        "tat": gate.tat_ms,
        "day": gate.day,
        "launched": gate.launched,
        "served": dict(gate.served),
    }


def to_gate(item: Mapping[str, Any]) -> Gate:
    """The gate of a row."""
    return Gate(
        fence=item.get("fence", 0),
        holders={name: _holder(held) for name, held in item.get("holders", {}).items()},
        tat_ms=item.get("tat", 0),
        day=item.get("day", ""),
        launched=item.get("launched", 0),
        served=item.get("served", {}),
    )


def _holder_item(holder: Holder) -> dict[str, Plain]:
    return {
        "users": tuple(run.user_id for run in holder.runs),
        "models": tuple(run.model_id for run in holder.runs),
        "runs": tuple(keys.execution_name(run.request_id, run.attempt) for run in holder.runs),
        "instances": holder.instances,
        "until": holder.until_s,
        "since": holder.since_s,
        "batch": holder.batch,
    }


def _holder(item: Mapping[str, Any]) -> Holder:
    runs = []
    for name, user_id, model_id in zip(item["runs"], item["users"], item["models"], strict=True):
        request_id, _, attempt = name.rpartition("-")
        runs.append(Run(request_id, int(attempt), user_id, model_id))
    return Holder(tuple(runs), item["instances"], item["until"], item["batch"], item["since"])
