"""The writes that end a request. Each is conditional, and doing it twice is doing it once.

::

    time ──>   end()                  release()
    request    TRAINING ──> FAILED
    version                           TRAINED ──> FAILED       (if this request made it)
    model                             active_request ──> free  (if this request holds it)

A crash between the two leaves an ended request with a busy model; the repetition finds the request
ended by the same owner and frees the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdas.record_failure.logic import Ending
from lambdas.shared.dynamo import Table
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import ALLOWED_FROM, VersionStatus
from limner.contracts.times import utc_now


class Ledger:
    """The two tables, as far as failures write to them.

    Args:
        models: Table of models and versions.
        requests: Table of requests.
    """

    def __init__(self, models: Table, requests: Table) -> None:
        self._models = models
        self._requests = requests

    def read(self, request_id: str) -> dict[str, Any] | None:
        """The request's record."""
        return self._requests.read({"request_id": request_id})

    def end(self, ending: Ending) -> None:
        """Ends a request that nobody else owns and that has not ended.

        It is ``unannounced`` from then on, until whoever announces it has noted that.

        Raises:
            LimnerError: ``REQUEST_ALREADY_CLAIMED``, if it changed between reading and writing;
                the caller is run again, and reads again.
        """
        allowed = {f":from{i}": s for i, s in enumerate(sorted(ALLOWED_FROM[ending.status]))}
        written = self._requests.update(
            {"request_id": ending.request_id},
            update=(
                "SET #status = :status, #error = :error, #owner = :me, #updated_at = :now,"
                " #unannounced = :true REMOVE #open, #queue, #lease_until"
            ),
            condition=(
                f"(#owner = :me OR attribute_not_exists(#owner))"
                f" AND #status IN ({', '.join(allowed)})"
            ),
            values={
                ":status": ending.status.value,
                ":error": ending.failure.to_error(),
                ":me": ending.owner,
                ":now": utc_now(),
                ":true": True,
                **allowed,
            },
        )
        if not written:
            raise LimnerError(
                "REQUEST_ALREADY_CLAIMED",
                f"Request {ending.request_id} changed while its failure was being recorded.",
            )

    def release(self, record: Mapping[str, Any]) -> None:
        """Fails the request's unfinished version and frees its model, where they are its own."""
        user_id, model_id = record["user_id"], record["model_id"]
        if "version" in record:
            self._models.update(
                {
                    "user_id": user_id,
                    "model_row": keys.version_row(model_id, record["version"]),
                },
                update="SET #status = :failed, #updated_at = :now",
                condition="#request_id = :request AND #status = :trained",
                values={
                    ":failed": VersionStatus.FAILED.value,
                    ":trained": VersionStatus.TRAINED.value,
                    ":request": record["request_id"],
                    ":now": utc_now(),
                },
            )
        self._models.update(
            {"user_id": user_id, "model_row": model_id},
            update="SET #updated_at = :now REMOVE #active_request",
            condition="#active_request = :request",
            values={":request": record["request_id"], ":now": utc_now()},
        )

    def mark_announced(self, request_id: str) -> None:
        """Notes that the failure of a request was announced."""
        self._requests.update(
            {"request_id": request_id},
            update="REMOVE #unannounced",
            condition="#unannounced = :true",
            values={":true": True},
        )
