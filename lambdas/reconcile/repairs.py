"""The writes of reconcile. Each is conditional on what was seen, and twice is once.

::

    time ──>   owe      end                     release     publish  mark    done
    notes      owed ────────────────────────────────────────────────────────── gone
    request             ... ──> FAILED, unannounced ──────────────── announced
                    READY, unannounced (by the machine) ──────────── announced
    model                                       free
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from lambdas.reconcile.logic import Record
from lambdas.reconcile.notes import Notes, request_of
from lambdas.record_failure.ledger import Ledger
from lambdas.record_failure.logic import FAILED_EVENT, Ending, Failure, as_wished, failed_body
from lambdas.shared.clock import Clock
from lambdas.shared.dynamo import Plain, Table
from limner.contracts import keys, writes
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import TERMINAL, RequestStatus

READY_EVENT: Final = "limner.onboarding.ready"
# Owner of what nobody owned when it was ended.
ME = "reconcile"


class Repairs:
    """What can be done about a request.

    Args:
        models: Table of models and versions.
        requests: Table of requests.
        notes: What is owed.
        publish: Sends a notification's body to the topic.
        clock: The invocation's clock.
    """

    def __init__(
        self,
        models: Table,
        requests: Table,
        notes: Notes,
        publish: Callable[[Mapping[str, Any]], None],
        clock: Clock,
    ) -> None:
        self._requests = requests
        self._models = models
        self._ledger = Ledger(models, requests)
        self._notes = notes
        self._publish = publish
        self._clock = clock

    def read(self, request_id: str) -> dict[str, Any] | None:
        """The request's record, consistently."""
        return self._ledger.read(request_id)

    def enqueue(self, record: Record, *, next_attempt: bool) -> bool:
        """Puts a QUEUED request into the queue that was in none."""
        attempt = record.get("attempt", 1)
        now = self._clock.now()
        return self._requests.update(
            {"request_id": record["request_id"]},
            update=f"{writes.INTO_QUEUE}, #attempt = :next REMOVE #lease_until, #lease_by",
            condition=f"{writes.MAY_QUEUE} AND #updated_at = :seen",
            values={
                **writes.into_queue(record["user_id"], now),
                ":next": attempt + 1 if next_attempt else attempt,
                ":seen": record["updated_at"],
            },
        )

    def clear_lease(self, record: Record) -> bool:
        """Removes a lease that is over, if nobody has taken a newer one."""
        return self._requests.update(
            {"request_id": record["request_id"]},
            update="REMOVE #lease_until, #lease_by",
            condition="#lease_until = :seen",
            values={":seen": record["lease_until"]},
        )

    def requeue(self, record: Record) -> bool:
        """Puts a request back whose batch has ended without it; its model is free meanwhile."""
        now = self._clock.now()
        condition = (
            f"#owner = :owner AND #status IN (:training, :waiting) AND {writes.NOT_CANCELLED}"
        )
        values: dict[str, Plain] = {
            ":false": False,
            ":queued": RequestStatus.QUEUED.value,
            ":next": record.get("attempt", 1) + 1,
            ":shard": record["open"],
            ":now": now,
            ":owner": record["owner"],
            ":training": RequestStatus.TRAINING.value,
            ":waiting": RequestStatus.WAITING_FOR_CAPACITY.value,
        }
        key = {"request_id": record["request_id"]}
        update = (
            "SET #status = :queued, #attempt = :next, #queue = :shard, #queued_at = :now,"
            " #updated_at = :now REMOVE #owner, #lease_until, #lease_by"
        )
        held = self._requests.transact(
            [
                self._models.member(
                    {"user_id": record["user_id"], "model_row": record["model_id"]},
                    "SET #updated_at = :now REMOVE #active_request",
                    "#active_request = :request",
                    {":now": now, ":request": record["request_id"]},
                ),
                self._requests.member(key, update, condition, values),
            ]
        )
        if held is None:
            return True
        # The model was never taken, or is another's by now: then there is nothing to free.
        return held[1] and self._requests.update(key, update, condition, values)

    def end(self, record: Record, ending: Ending) -> bool:
        """Ends a request as its client wished, frees its model, and tells the app.

        Returns:
            False if the request has changed hands meanwhile.
        """
        entry = self._notes.owe(ending.request_id, self._clock.now_ms())
        try:
            self._ledger.end(as_wished(record, ending))
        except LimnerError as error:
            if error.code != "REQUEST_ALREADY_CLAIMED":
                raise
            self._notes.done(entry)
            return False
        self.pay(entry)
        return True

    def fail(self, record: Record, code: str, message: str) -> bool:
        """Ends a request as FAILED for a reason of our own."""
        return self.end(
            record,
            Ending(
                request_id=record["request_id"],
                owner=record.get("owner", ME),
                status=RequestStatus.FAILED,
                failure=Failure(code, message),
                by_rule=True,
            ),
        )

    def finish(self, request_id: str) -> None:
        """Does what is left to do about an ended request; nothing if it has not ended."""
        record = self._ledger.read(request_id)
        if record is not None and RequestStatus(record["status"]) in TERMINAL:
            self._finish(record)

    def pay(self, entry: str) -> None:
        """Finishes a request that is owed its ending, and notes it."""
        self.finish(request_of(entry))
        self._notes.done(entry)

    def _finish(self, record: dict[str, Any]) -> None:
        if record["status"] == RequestStatus.READY:
            if record.get("unannounced"):
                self._publish(ready_body(record))
                self._ledger.mark_announced(record["request_id"])
        elif "error" in record:
            self._ledger.release(record)
            if record.get("unannounced"):
                self._publish({"type": FAILED_EVENT, **failed_body(record, record["error"])})
                self._ledger.mark_announced(record["request_id"])
        self._requests.update(
            {"request_id": record["request_id"]},
            update="REMOVE #open, #queue, #lease_until, #lease_by",
            condition="#status = :status AND attribute_exists(#open)",
            values={":status": record["status"]},
        )


def ready_body(record: Record) -> dict[str, Any]:
    """The body of the notification: ``limner.contracts.onboarding.OnboardingReady``."""
    user_id, model_id, version = record["user_id"], record["model_id"], record["version"]
    return {
        "type": READY_EVENT,
        "schema_version": 1,
        "request_id": record["request_id"],
        "user_id": user_id,
        "model_id": model_id,
        "version": version,
        "target_model": keys.target_model(user_id, model_id, version),
    }


def as_message(topic_arn: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``publish`` for a notification's body."""
    return {
        "TopicArn": topic_arn,
        "Message": json.dumps(body),
        "MessageAttributes": {"type": {"DataType": "String", "StringValue": body["type"]}},
    }
