"""The registry: the tables of requests and models, their rows, and every access of the client.

The state machine and the Lambda functions write the same rows; all status writes carry the
conditions of ``limner.contracts.statuses``, so a request's status only moves forward::

    client      put QUEUED if new           cancel if not claimed (of a batch: ask for it)
    register    put REGISTERED if new ── QUEUED
    machine            claim (owner = me) ── TRAINED ── READY      if owner = me
    rule                                                FAILED | CANCELLED if not ended

Which version serves is one field of the model's row, ``live_version``: the machine sets it to a new
version at the end of an onboarding, the client to any other READY one (``Registry.activate``).

Methods raise botocore's ``ClientError`` as it comes; ``limner.client`` translates.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict

from limner.contracts import keys, writes
from limner.contracts.errors import REGISTRY, LimnerError
from limner.contracts.limits import COUNTED_REQUESTS, RECORD_DAYS
from limner.contracts.statuses import ALLOWED_FROM, RequestStatus, VersionStatus
from limner.contracts.times import utc_now

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

BY_USER: Final = "by_user"
# What waits for ``dispatch``, and what has not ended; both are sparse, and spread over shards.
QUEUE: Final = "queue"
OPEN: Final = "open"

Item = Mapping[str, Any]

_deserialize = TypeDeserializer().deserialize
_serialize = TypeSerializer().serialize


class _Row(BaseModel):
    # Rows may have fields that a newer version of Limner wrote; an older reader passes them over.
    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def from_item(cls, item: Item) -> Self:
        """The row of an item in DynamoDB's attribute-value form."""
        return cls.model_validate({name: _deserialize(value) for name, value in item.items()})

    def to_item(self) -> dict[str, Any]:
        """The item of this row; absent values are left out."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {name: _serialize(value) for name, value in values.items()}


class RequestFailure(BaseModel):
    """Why a request ended without a model.

    Attributes:
        code: A code of the error registry.
        message: The case at hand.
        retryable: Whether the same onboarding can succeed later.
        fault: Whose it is: ``caller``, ``aws`` or ``limner``.
        fix: What to do about it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    message: str = ""
    retryable: bool = False
    fault: str = ""
    fix: str = ""

    def to_error(self) -> LimnerError:
        """The error to raise. A code that this version does not know becomes TRAINING_FAILED."""
        if self.code in REGISTRY:
            return LimnerError(self.code, self.message)
        return LimnerError("TRAINING_FAILED", f"{self.code}: {self.message}")


class Request(_Row):
    """One wish for one version of a model.

    Attributes:
        request_id: Its name.
        user_id: Whose model.
        model_id: Which of the user's models.
        status: Where it stands.
        created_at: ISO 8601, UTC.
        updated_at: ISO 8601, UTC; the last change of the status.
        shard: Which partition of the indexes it is in.
        open: The shard, until it ends; puts it into the index of requests that have not ended.
        queue: The shard, while it waits for ``dispatch``; puts it into the index of the queue.
        queued_at: ISO 8601, UTC; when it entered the queue.
        retrain: Whether to train a new version when the model is ready already.
        steps: Optimizer steps of its config.
        expires_at: Seconds since 1970; when DynamoDB deletes the record.
        photos: Number of different photos.
        input_digest: SHA-256 of everything asked for; tells a repeat from a conflict.
        owner: ARN of the execution that holds the request; absent while QUEUED.
        attempt: Number of the training attempt.
        version: The version that it makes, from the moment that it is reserved.
        job_name: The training job.
        already_ready: True if the model was ready and nothing was trained.
        cancel_requested: True if it was cancelled while it shared its execution with others.
        error: Why it ended FAILED or CANCELLED.
    """

    request_id: str
    user_id: str
    model_id: str
    status: RequestStatus
    created_at: str
    updated_at: str
    shard: str = ""
    open: str | None = None
    queue: str | None = None
    queued_at: str | None = None
    retrain: bool = False
    steps: int = 0
    expires_at: int | None = None
    photos: int = 0
    input_digest: str = ""
    owner: str | None = None
    attempt: int = 1
    version: int | None = None
    job_name: str | None = None
    already_ready: bool = False
    cancel_requested: bool = False
    error: RequestFailure | None = None

    @classmethod
    def new(
        cls,
        request_id: str,
        user_id: str,
        model_id: str,
        *,
        retrain: bool,
        steps: int,
        photos: int,
        input_digest: str,
        queued: bool,
    ) -> Self:
        """A QUEUED request that has all its photos.

        Args:
            request_id: Its name.
            user_id: Whose model.
            model_id: Which of the user's models.
            retrain: Whether to train a new version when the model is ready already.
            steps: Optimizer steps of its config.
            photos: Number of different photos.
            input_digest: SHA-256 of everything asked for.
            queued: Whether it waits for ``dispatch``, instead of being started by the caller.
        """
        created_at, shard = utc_now(), keys.shard_of(user_id)
        return cls(
            request_id=request_id,
            user_id=user_id,
            model_id=model_id,
            status=RequestStatus.QUEUED,
            created_at=created_at,
            updated_at=created_at,
            shard=shard,
            open=shard,
            queue=shard if queued else None,
            queued_at=created_at if queued else None,
            retrain=retrain,
            steps=steps,
            expires_at=int(time.time()) + RECORD_DAYS * 86_400,
            photos=photos,
            input_digest=input_digest,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the request is READY, FAILED or CANCELLED."""
        return self.status.is_terminal

    def raise_for_error(self) -> Self:
        """Returns the request, or raises its own error if it FAILED or was CANCELLED.

        Raises:
            LimnerError: With the code that the failed step recorded.
        """
        if self.status not in (RequestStatus.FAILED, RequestStatus.CANCELLED):
            return self
        if self.error is not None:
            raise self.error.to_error()
        cancelled = self.status is RequestStatus.CANCELLED
        raise LimnerError("EXECUTION_STOPPED" if cancelled else "TRAINING_FAILED")


class Model(_Row):
    """A model: the row that says which of its versions serves.

    Attributes:
        user_id: Whose model.
        model_id: Which one.
        last_version: Number of the newest version, serving or not.
        live_version: The version that serves; None until the first one is ready.
        target_model: What the endpoint calls the live version.
        active_request: The request that trains a new version now.
        updated_at: ISO 8601, UTC.
    """

    user_id: str
    model_id: str
    last_version: int = 0
    live_version: int | None = None
    target_model: str | None = None
    active_request: str | None = None
    updated_at: str = ""

    @classmethod
    def from_item(cls, item: Item) -> Self:
        """The model of an item whose sort key is the model's id."""
        return super().from_item({**item, "model_id": item["model_row"]})


class Version(_Row):
    """One trained version of a model.

    Attributes:
        user_id: Whose model.
        model_id: Which one.
        version: 1, 2, 3 …
        status: TRAINED, READY (it has served once) or FAILED.
        request_id: The request that made it.
        job_name: The training job.
        artifact_key: Key of the artifact in the bucket.
        target_model: What the endpoint calls it.
        created_at: ISO 8601, UTC.
        updated_at: ISO 8601, UTC; of a READY version, when it went live the last time.
    """

    user_id: str
    model_id: str
    version: int
    status: VersionStatus
    request_id: str
    job_name: str = ""
    artifact_key: str = ""
    target_model: str = ""
    created_at: str = ""
    updated_at: str = ""

    @classmethod
    def from_item(cls, item: Item) -> Self:
        """The version of an item whose sort key is ``<model_id>#v<version>``."""
        model_id = str(item["model_row"]["S"]).partition("#")[0]
        return super().from_item({**item, "model_id": {"S": model_id}})


class Registry:
    """Reads and writes of the two tables. Safe to share between threads.

    Args:
        dynamodb: A client of DynamoDB.
        models_table: Name of the table of models and versions.
        requests_table: Name of the table of requests.
    """

    def __init__(self, dynamodb: DynamoDBClient, models_table: str, requests_table: str) -> None:
        self._dynamodb = dynamodb
        self._models = models_table
        self._requests = requests_table

    def create_request(self, request: Request) -> Request:
        """Writes a new QUEUED request, or returns the one that has its id already.

        A write whose reply was lost is met again by the SDK's retry and read back here, so it
        counts as ours by its ``input_digest``.

        Returns:
            The stored request; the caller compares ``input_digest``.
        """
        try:
            self._dynamodb.put_item(
                TableName=self._requests,
                Item=request.to_item(),
                ConditionExpression="attribute_not_exists(request_id)",
            )
        except ClientError as error:
            if not _condition_failed(error):
                raise
            return self.request(request.request_id)
        return request

    def request(self, request_id: str) -> Request:
        """One request, strongly consistent.

        Raises:
            LimnerError: ``REQUEST_NOT_FOUND``, or ``INVALID_INPUT`` for a malformed id.
        """
        key = {"request_id": {"S": keys.check_request_id(request_id)}}
        answer = self._dynamodb.get_item(TableName=self._requests, Key=key, ConsistentRead=True)
        if "Item" not in answer:
            raise LimnerError("REQUEST_NOT_FOUND", f"There is no request {request_id}.")
        return Request.from_item(answer["Item"])

    def complete(self, request: Request) -> Request:
        """Makes a REGISTERED request QUEUED, once its photos are there.

        Returns:
            The request as it stands; by a lost reply or by somebody else it may be QUEUED already.
        """
        return self._update(
            request.request_id,
            writes.COMPLETE,
            writes.MAY_COMPLETE,
            _texts(writes.complete(utc_now())),
        )

    def enqueue(self, request: Request) -> Request:
        """Puts a QUEUED request that nobody has claimed into the queue, if it is not in it.

        Returns:
            The request as it stands.
        """
        return self._update(
            request.request_id,
            writes.INTO_QUEUE,
            writes.MAY_QUEUE,
            _texts(writes.into_queue(request.user_id, utc_now())),
        )

    def ask_to_cancel(self, request_id: str) -> Request:
        """Notes the wish to cancel a request that somebody has claimed and that has not ended.

        Returns:
            The request as it stands.
        """
        allowed, values = _may_become(RequestStatus.CANCELLED)
        return self._update(
            request_id,
            "SET cancel_requested = :true",
            f"{allowed} AND attribute_exists(#owner)",
            {**values, ":true": {"BOOL": True}},
        )

    def cancel_unclaimed(self, request_id: str, failure: RequestFailure) -> Request:
        """Ends a request that no execution has claimed.

        ::

            cancel:   CANCELLED if no owner ──┐  one of the two conditions fails:
            machine:  TRAINING, owner = me  ──┘  the other one keeps the request

        Returns:
            The request as it stands: CANCELLED, or as its owner left it.
        """
        allowed, values = _may_become(RequestStatus.CANCELLED)
        return self._update(
            request_id,
            "SET #status = :to, #error = :error, updated_at = :now"
            " REMOVE #open, #queue, lease_until",
            f"{allowed} AND attribute_not_exists(#owner)",
            {
                **values,
                ":to": {"S": RequestStatus.CANCELLED},
                ":error": _serialize(failure.model_dump()),
                ":now": {"S": utc_now()},
            },
        )

    def requests_of(self, user_id: str, *, page_size: int = 50) -> Iterator[Request]:
        """A user's requests, newest first, fetched page by page while they are used.

        The index is eventually consistent: a request of the last second may be missing.
        """
        user = keys.check_user_id(user_id)
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._requests,
            IndexName=BY_USER,
            KeyConditionExpression="user_id = :user",
            ExpressionAttributeValues={":user": {"S": user}},
            ScanIndexForward=False,
            PaginationConfig={"PageSize": page_size},
        )
        return (Request.from_item(item) for page in pages for item in page["Items"])

    def count_open(self, user_id: str) -> int:
        """How many of a user's last ``COUNTED_REQUESTS`` have not ended; a moment late."""
        answer = self._dynamodb.query(
            TableName=self._requests,
            IndexName=BY_USER,
            KeyConditionExpression="user_id = :user",
            FilterExpression="attribute_exists(#open)",
            ExpressionAttributeNames={"#open": OPEN},
            ExpressionAttributeValues={":user": {"S": keys.check_user_id(user_id)}},
            ScanIndexForward=False,
            Limit=COUNTED_REQUESTS,
        )
        return len(answer["Items"])

    def model(self, user_id: str, model_id: str) -> Model | None:
        """A model's own row, strongly consistent; None before its first version is reserved."""
        item = self._model_row(user_id, keys.check_model_id(model_id))
        return None if item is None else Model.from_item(item)

    def version(self, user_id: str, model_id: str, version: int) -> Version | None:
        """One version of a model, strongly consistent."""
        item = self._model_row(user_id, keys.version_row(model_id, version))
        return None if item is None else Version.from_item(item)

    def versions_of(self, user_id: str, model_id: str) -> list[Version]:
        """All versions of a model, newest first, strongly consistent."""
        user, prefix = keys.check_user_id(user_id), keys.version_rows(model_id)
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._models,
            KeyConditionExpression="user_id = :user AND begins_with(model_row, :prefix)",
            ExpressionAttributeValues={":user": {"S": user}, ":prefix": {"S": prefix}},
            ConsistentRead=True,
        )
        found = [Version.from_item(item) for page in pages for item in page["Items"]]
        # The numbers in sort keys are not padded: v10 lies before v2 (decision 009).
        return sorted(found, key=lambda version: version.version, reverse=True)

    def activate(self, model: Model, version: int) -> bool:
        """Makes a version the one that serves: one write, under the condition of what was read.

        ::

            here:     live = v   if live is still what ``model`` says, and v is READY
            machine:  live = n   if its request holds the model; n is newer than all others

        Whoever trains a new version keeps the model; it goes live at its end, as was asked for.

        Args:
            model: The model as it was read.
            version: The version.

        Returns:
            Whether it was written. If not, something else was: read again. A write whose reply
            was lost may look like that, too.
        """
        key = {"user_id": {"S": model.user_id}}
        seen = {} if model.live_version is None else {":seen": {"N": str(model.live_version)}}
        target = keys.target_model(model.user_id, model.model_id, version)
        now = {"S": utc_now()}
        try:
            self._dynamodb.transact_write_items(
                TransactItems=[
                    {
                        "Update": {
                            "TableName": self._models,
                            "Key": {**key, "model_row": {"S": model.model_id}},
                            "UpdateExpression": (
                                "SET live_version = :version, target_model = :target,"
                                " updated_at = :now"
                            ),
                            "ConditionExpression": (
                                "live_version = :seen"
                                if seen
                                else "attribute_exists(model_row)"
                                " AND attribute_not_exists(live_version)"
                            ),
                            "ExpressionAttributeValues": {
                                **seen,
                                ":version": {"N": str(version)},
                                ":target": {"S": target},
                                ":now": now,
                            },
                        }
                    },
                    {
                        "Update": {
                            "TableName": self._models,
                            "Key": {
                                **key,
                                "model_row": {"S": keys.version_row(model.model_id, version)},
                            },
                            "UpdateExpression": "SET updated_at = :now",
                            "ConditionExpression": "#status = :ready",
                            "ExpressionAttributeNames": {"#status": "status"},
                            "ExpressionAttributeValues": {
                                ":ready": {"S": VersionStatus.READY.value},
                                ":now": now,
                            },
                        }
                    },
                ]
            )
        except ClientError as error:
            if not _refused_by_others(error):
                raise
            return False
        return True

    def models_of(self, user_id: str, *, page_size: int = 50) -> Iterator[Model]:
        """A user's models by name, fetched page by page while they are used."""
        user = keys.check_user_id(user_id)
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._models,
            KeyConditionExpression="user_id = :user",
            # Version rows lie between the models' own rows; they alone have a version.
            FilterExpression="attribute_not_exists(#version)",
            ExpressionAttributeNames={"#version": "version"},
            ExpressionAttributeValues={":user": {"S": user}},
            PaginationConfig={"PageSize": page_size},
        )
        return (Model.from_item(item) for page in pages for item in page["Items"])

    def _update(
        self, request_id: str, update: str, condition: str, values: Mapping[str, Any]
    ) -> Request:
        """Updates a request if the condition holds; returns it as it stands then.

        Whether the write was ours does not matter to any caller, so a reply that was lost needs no
        care: the SDK's retry fails the condition, and the row is read back.
        """
        names = re.findall(r"#(\w+)", f"{update} {condition}")
        try:
            self._dynamodb.update_item(
                TableName=self._requests,
                Key={"request_id": {"S": keys.check_request_id(request_id)}},
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames={f"#{name}": name for name in names},
                ExpressionAttributeValues=values,
            )
        except ClientError as error:
            if not _condition_failed(error):
                raise
        return self.request(request_id)

    def _model_row(self, user_id: str, row: str) -> Item | None:
        key = {"user_id": {"S": keys.check_user_id(user_id)}, "model_row": {"S": row}}
        answer = self._dynamodb.get_item(TableName=self._models, Key=key, ConsistentRead=True)
        return answer.get("Item")


def _texts(values: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"S": value} for name, value in values.items()}


def _may_become(status: RequestStatus) -> tuple[str, dict[str, Any]]:
    """The condition that a request may have this status next, and its values."""
    values = {f":from{i}": {"S": s.value} for i, s in enumerate(sorted(ALLOWED_FROM[status]))}
    return f"#status IN ({', '.join(values)})", values


def _condition_failed(error: ClientError) -> bool:
    return error.response["Error"]["Code"] == "ConditionalCheckFailedException"


def _refused_by_others(error: ClientError) -> bool:
    """Whether a transaction met another state of its rows, or somebody who writes them just now."""
    reasons = {reason.get("Code") for reason in error.response.get("CancellationReasons", ())}
    cancelled = error.response["Error"]["Code"] == "TransactionCanceledException"
    return cancelled and reasons <= {"None", "ConditionalCheckFailed", "TransactionConflict"}
