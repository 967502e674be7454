"""The requests that wait, and the bucket, as a worker sees them: all that it asks of AWS.

::

    requests table, index ``queue``      bucket
    find ── take ── renew …              uploads/<user>/<request>/, configs/<request>/ ─> fetch
              │        └─ lost: dropped  previews/<request>/ <─ show
              └─ deliver ──────────────> batches/<worker>/1/out/<request>/, result.json last
                    └─ the row names the job, and the lease ends

A lease is one conditional write (``limner.contracts.writes``, the words that ``dispatch`` uses),
and each write behind it carries its fence: a worker that was too slow changes no row any more.
What it has put on its shelf by then is read by nobody, since no row names it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from limner.contracts import keys, writes
from limner.contracts.errors import LimnerError
from limner.contracts.limits import MAX_OPEN_REQUESTS, MAX_PHOTO_BYTES, MAX_PHOTOS
from limner.contracts.statuses import RequestStatus
from limner.contracts.tasks import ARTIFACT_FILE, RESULT_FILE
from limner.contracts.times import as_text
from limner.contracts.training import TrainingConfig
from training.forms import parse_form
from training.progress import event_line, say

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

_INDEX: Final = "queue"
# A lease outlasts a renewal that meets the timeouts below at each of its calls.
LEASE_S: Final = 90.0
_CONNECT_S: Final = 3
_READ_S: Final = 7
# A look reads so many rows of a shard at once, and so many times, if few users own them all.
_WINDOW: Final = 2 * MAX_OPEN_REQUESTS
_PAGES: Final = 5
_ENOUGH_USERS: Final = 20
# The config of eight prompts of 400 characters has less than 6 kB.
_MAX_CONFIG_BYTES: Final = 65_536
_PHOTO: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# SDKs repeat what was throttled.
_CALLS: Final = 4


@dataclass(frozen=True)
class Order:
    """A request that waits.

    Attributes:
        request_id: The wish.
        user_id: Whose model.
        model_id: Which of the user's models.
        queued_at: When it came into the queue; compares as text.
    """

    request_id: str
    user_id: str
    model_id: str
    queued_at: str


@dataclass(frozen=True)
class Lease:
    """An order that is ours.

    Attributes:
        order: The order.
        fence: Number of the lease.
        until_s: When it ends, by the clock of the place.
    """

    order: Order
    fence: int
    until_s: float


class Orders:
    """The queue and the shelf of one worker.

    Args:
        dynamodb: A client of DynamoDB.
        s3: A client of S3.
        table: The table of requests.
        bucket: The bucket.
        job: Name of this job; what a row is told of its result.
        me: Name of this start of the job, unlike any other's.
        lease_s: How long a lease lasts.
        now_s: Seconds since 1970.
    """

    def __init__(
        self,
        dynamodb: DynamoDBClient,
        s3: S3Client,
        *,
        table: str,
        bucket: str,
        job: str,
        me: str,
        lease_s: float = LEASE_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        batch = keys.batch_of_job(job)
        if batch is None:
            raise LimnerError("INVALID_INPUT", "The job's name is not that of a worker.")
        self._dynamodb = dynamodb
        self._s3 = s3
        self._table = table
        self._bucket = bucket
        self._job = job
        self._me = me
        self._shelf = f"{keys.batch_prefix(*batch)}out/"
        self.lease_s = lease_s
        """How long a lease lasts, in seconds."""
        self.now_s = now_s
        """The clock of the leases, in seconds since 1970."""

    # -- The queue --------------------------------------------------------------------------------

    def find(self) -> list[Order]:
        """Free orders, the oldest first: one of each user who has none with a worker.

        Raises:
            LimnerError: ``AWS_ERROR``.
        """
        now = _iso(self.now_s())
        oldest: dict[str, Order] = {}
        busy: set[str] = set()
        for shard in range(keys.SHARDS):
            for row in self._rows(str(shard)):
                order = _order(row)
                if order is None:
                    continue
                if "trained_by" in row or row.get("lease_until", {}).get("S", "") > now:
                    busy.add(order.user_id)
                elif _is_for_workers(row):
                    oldest.setdefault(order.user_id, order)
        free = [order for order in oldest.values() if order.user_id not in busy]
        return sorted(free, key=lambda order: (order.queued_at, order.request_id))

    def _rows(self, shard: str) -> list[Mapping[str, Any]]:
        """The oldest rows of a shard; more of them, where a few users' floods fill it."""
        rows: list[Mapping[str, Any]] = []
        start: dict[str, Any] = {}
        for _ in range(_PAGES):
            with _aws_errors():
                answer = self._dynamodb.query(
                    TableName=self._table,
                    IndexName=_INDEX,
                    KeyConditionExpression="#queue = :shard",
                    ExpressionAttributeNames={"#queue": "queue"},
                    ExpressionAttributeValues={":shard": {"S": shard}},
                    Limit=_WINDOW,
                    **start,
                )
            rows += answer["Items"]
            users = {str(row.get("user_id")) for row in rows}
            if "LastEvaluatedKey" not in answer or len(users) >= _ENOUGH_USERS:
                break
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return rows

    def take(self, order: Order) -> Lease | None:
        """Makes an order ours; None if it is another's, or does not wait any more.

        Raises:
            LimnerError: ``AWS_ERROR``.
        """
        now_s = self.now_s()
        until_s = now_s + self.lease_s
        values = writes.lease(self._me, attempt=1, now=_iso(now_s), until=_iso(until_s))
        item = self._update(
            order,
            writes.WORKER_LEASE,
            writes.WORKER_MAY_LEASE,
            {**values, ":tries": writes.WORKER_TRIES},
        )
        return None if item is None else Lease(order, int(item["lease_fence"]["N"]), until_s)

    def renew(self, lease: Lease) -> Lease | None:
        """Prolongs a lease; None if it is lost, or the request was cancelled.

        Raises:
            LimnerError: ``AWS_ERROR``; the lease then goes on until its end.
        """
        until_s = self.now_s() + self.lease_s
        values = {**self._held(lease), ":until": _iso(until_s)}
        item = self._update(lease.order, writes.RENEW, writes.WORKER_MAY_GO_ON, values)
        return None if item is None else Lease(lease.order, lease.fence, until_s)

    def give_back(self, lease: Lease) -> None:
        """Ends a lease that is still ours: somebody else may take the order at once.

        Raises:
            LimnerError: ``AWS_ERROR``; the lease then ends by itself.
        """
        self._update(
            lease.order,
            writes.GIVE_BACK,
            writes.HOLDS_LEASE,
            {":me": self._me, ":fence": lease.fence},
        )

    # -- The bucket -------------------------------------------------------------------------------

    def fetch(self, order: Order, photos_dir: Path) -> TrainingConfig:
        """Brings an order's photos; returns its config.

        Args:
            order: The order.
            photos_dir: Where the photos go; it must be empty.

        Raises:
            LimnerError: ``INVALID_INPUT``, ``TOO_FEW_PHOTOS``, ``TOO_MANY_PHOTOS``,
                ``PHOTO_TOO_LARGE``, or ``AWS_ERROR``.
        """
        config = parse_form(self._config(order), TrainingConfig, where=keys.CONFIG_FILE)
        prefix = keys.uploads_prefix(order.user_id, order.request_id)
        with _aws_errors():
            listed = self._s3.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=MAX_PHOTOS + 1
            ).get("Contents", [])
        if not listed:
            raise LimnerError("TOO_FEW_PHOTOS", "The request's photos are not there any more.")
        if len(listed) > MAX_PHOTOS:
            raise LimnerError("TOO_MANY_PHOTOS", f"The request has more than {MAX_PHOTOS} photos.")
        photos_dir.mkdir(parents=True)
        for number, entry in enumerate(listed):
            if entry["Size"] > MAX_PHOTO_BYTES:
                raise LimnerError("PHOTO_TOO_LARGE", f"Photo {number} is too large.")
            # Whatever is behind the prefix, no name of a stranger becomes a path.
            if not _PHOTO.fullmatch(name := entry["Key"].removeprefix(prefix)):
                raise LimnerError("INVALID_INPUT", f"Photo {number} has no name of an upload.")
            with _aws_errors():
                self._s3.download_file(self._bucket, entry["Key"], str(photos_dir / name))
        return config

    def show(self, order: Order, image: Path) -> None:
        """Puts a first image where those of a job of its own would be (``keys.PREVIEWS``).

        Raises:
            LimnerError: ``AWS_ERROR``.
        """
        self._upload(image, f"{keys.PREVIEWS_TEMPLATE.format(order.request_id)}{image.name}")

    def deliver(self, lease: Lease, folder: Path) -> bool:
        """Puts what was made of an order on the shelf, tells its row, and ends the lease.

        Args:
            lease: Ours, as far as we know.
            folder: What was made; ``result.json`` speaks of all the rest and goes last.

        Returns:
            Whether the order was still ours.

        Raises:
            LimnerError: ``AWS_ERROR``.
        """
        for name in (ARTIFACT_FILE, RESULT_FILE):
            if (folder / name).exists():  # a failure has no artifact
                self._upload(folder / name, f"{self._shelf}{lease.order.request_id}/{name}")
        values = {**self._held(lease), ":job": self._job}
        if self._update(lease.order, writes.TRAINED_AHEAD, writes.WORKER_MAY_GO_ON, values):
            return True
        # The SDK repeats a call whose reply was lost, and finds its own write in the way.
        with _aws_errors():
            item = self._dynamodb.get_item(
                TableName=self._table, Key=_key(lease.order), ConsistentRead=True
            ).get("Item", {})
        return item.get("trained_by") == {"S": self._job}

    def _config(self, order: Order) -> bytes:
        key = f"{keys.config_prefix(order.request_id)}{keys.CONFIG_FILE}"
        with _aws_errors():
            found = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
            if not found.get("KeyCount"):
                message = "The request's training config is not there any more."
                raise LimnerError("INVALID_INPUT", message)
            body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"]
            content: bytes = body.read(_MAX_CONFIG_BYTES + 1)
        if len(content) > _MAX_CONFIG_BYTES:
            raise LimnerError("INVALID_INPUT", "The request's training config is too large.")
        return content

    def _upload(self, path: Path, key: str) -> None:
        with _aws_errors():
            self._s3.upload_file(str(path), self._bucket, key)

    # -- Rows -------------------------------------------------------------------------------------

    def _held(self, lease: Lease) -> dict[str, str | int | bool]:
        return {
            ":me": self._me,
            ":fence": lease.fence,
            ":queued": RequestStatus.QUEUED.value,
            ":false": False,
        }

    def _update(
        self, order: Order, update: str, condition: str, values: Mapping[str, str | int | bool]
    ) -> Mapping[str, Any] | None:
        from botocore.exceptions import ClientError

        with _aws_errors():
            try:
                answer = self._dynamodb.update_item(
                    TableName=self._table,
                    Key=_key(order),
                    UpdateExpression=update,
                    ConditionExpression=condition,
                    ExpressionAttributeNames=_names(f"{update} {condition}"),
                    ExpressionAttributeValues=_attributes(values),
                    ReturnValues="ALL_NEW",
                )
            except ClientError as error:
                if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                    return None
                raise
        return answer["Attributes"]


def open_orders(*, table: str, bucket: str, job: str, me: str, region: str | None) -> Orders:
    """The orders of a stage, over AWS.

    Args:
        table: The table of requests.
        bucket: The bucket.
        job: Name of this job.
        me: Name of this start of the job.
        region: Where both are; None for what the environment says.
    """
    import boto3  # jobs that are no workers need no AWS
    from botocore.config import Config

    retries: Any = {"mode": "standard", "total_max_attempts": _CALLS}
    quick = Config(retries=retries, connect_timeout=_CONNECT_S, read_timeout=_READ_S)
    return Orders(
        boto3.client("dynamodb", region_name=region, config=quick),
        boto3.client("s3", region_name=region, config=Config(retries=retries)),
        table=table,
        bucket=bucket,
        job=job,
        me=me,
    )


def _order(item: Mapping[str, Any]) -> Order | None:
    """The order of a row; None, and a line, if no request can have it: ``dispatch`` ends it."""
    try:
        return Order(
            keys.check_request_id(item["request_id"]["S"]),
            keys.check_user_id(item["user_id"]["S"]),
            keys.check_model_id(item["model_id"]["S"]),
            str(item["queued_at"]["S"]),
        )
    except (KeyError, LimnerError):
        say(event_line("passed_over", row="bad"))
        return None


def _is_for_workers(row: Mapping[str, Any]) -> bool:
    """Whether a row is new to jobs; who has lost one is trained alone (``dispatch``)."""
    attempt, tries = (int(row.get(name, {}).get("N", 0)) for name in ("attempt", "worker_tries"))
    return attempt <= 1 and tries < writes.WORKER_TRIES


@contextmanager
def _aws_errors() -> Iterator[None]:
    """Turns what AWS's SDK raises into ``AWS_ERROR``, without names of keys."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise LimnerError("AWS_ERROR", f"No answer from AWS: {type(error).__name__}.") from error


def _key(order: Order) -> dict[str, Any]:
    return {"request_id": {"S": order.request_id}}


def _names(expressions: str) -> dict[str, str]:
    return {f"#{name}": name for name in re.findall(r"#(\w+)", expressions)}


def _attributes(values: Mapping[str, str | int | bool]) -> dict[str, Any]:
    return {
        name: {"BOOL": value}
        if isinstance(value, bool)
        else {"N": str(value)}
        if isinstance(value, int)
        else {"S": value}
        for name, value in values.items()
    }


def _iso(seconds: float) -> str:
    return as_text(datetime.fromtimestamp(seconds, UTC))
