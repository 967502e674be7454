"""What a registered request goes through, over a table, a bucket and a bus of any kind. Pure.

::

    register   row REGISTERED, if new ─> config.json ─> a form for each photo
    submit     look at each photo ─> row QUEUED, in the queue        start=queue
                                  ─> row QUEUED ─> event on the bus  start=event

The row comes first and decides: its digest says which input a token stands for, and only a call
with that input writes the config or gets forms. A crash between two steps, or a reply that is
lost, is mended by the same call: every step does nothing where it has been done.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from lambdas.register.questions import Promise, Wish, read_submission, read_wish
from lambdas.shared.inputs import onboarding_input
from limner.contracts import images, keys
from limner.contracts.config_table import ConfigValue
from limner.contracts.errors import LimnerError
from limner.contracts.limits import COUNTED_REQUESTS, MAX_OPEN_REQUESTS, RECORD_DAYS
from limner.contracts.statuses import RequestStatus

REQUESTED_EVENT: Final = "limner.onboarding.requested"
#: How long a form can be posted.
FORM_S: Final = 900
_SHOWN_PHOTOS: Final = 5
_DAY_S: Final = 86_400

Record = Mapping[str, Any]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Form:
    """What a presigned POST holds its holder to.

    Attributes:
        key: The one key that it writes.
        fields: Fields that the form must send as they are.
        conditions: What S3 enforces, beside the key.
    """

    key: str
    fields: Mapping[str, str]
    conditions: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    """An object that lies where a photo was promised.

    Attributes:
        size_bytes: Number of its bytes.
        content_type: The type that it was stored with.
        sha256: Hash of its bytes, as S3 computed it.
        file: Its bytes, fetched while they are read.
    """

    size_bytes: int
    content_type: str
    sha256: str
    file: images.Bytes


class Book(Protocol):
    """The table of requests."""

    def create(self, record: Record) -> Record:
        """Writes a record, or returns the one that has its id already."""
        ...

    def read(self, request_id: str) -> Record | None:
        """A record."""
        ...

    def count_open(self, user_id: str, among: int) -> int:
        """How many of so many last requests of a user have not ended."""
        ...

    def complete(self, record: Record, moment: str, *, queued: bool) -> Record | None:
        """Makes a REGISTERED record QUEUED; returns it as it stands."""
        ...

    def enqueue(self, record: Record, moment: str) -> Record | None:
        """Puts a QUEUED record that nobody has claimed into the queue; as it stands."""
        ...


class Bucket(Protocol):
    """The bucket of photos and configs."""

    def write_config(self, key: str, config: Mapping[str, ConfigValue]) -> None:
        """Writes a training config."""
        ...

    def post(self, form: Form, expires_s: int) -> Mapping[str, Any]:
        """The presigned POST of a form: ``url`` and ``fields``."""
        ...

    def look(self, key: str) -> Arrival | None:
        """What lies at a key, if anything does."""
        ...


class Bus(Protocol):
    """The bus of events."""

    def announce(self, detail_type: str, detail: Mapping[str, Any]) -> None:
        """Puts an event on the bus."""
        ...


class Mapper(Protocol):
    """``map``, or one that works on several at once."""

    def __call__(self, function: Callable[[_In], _Out], items: Iterable[_In], /) -> Iterator[_Out]:
        """The function's results, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Answers the two questions.

    Attributes:
        book: The table of requests.
        bucket: The bucket.
        bus: The bus.
        now: The present moment, as rows have it.
        epoch_s: The present moment, in seconds since 1970.
        each: How the photos of a request are gone through.
    """

    book: Book
    bucket: Bucket
    bus: Bus
    now: Callable[[], str]
    epoch_s: Callable[[], int]
    each: Mapper = map

    def answer(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Does what an event asks for.

        Raises:
            LimnerError: What is wrong with the event, or with the photos.
        """
        match event.get("action"):
            case "register":
                return self.register(read_wish(event))
            case "submit":
                return self.submit(event)
        raise LimnerError("INVALID_INPUT", "action must be register or submit.")

    def register(self, wish: Wish) -> dict[str, Any]:
        """Registers a wish, if it is new, and makes the forms for its photos.

        Raises:
            LimnerError: ``REQUEST_CONFLICT``, if its token was used with other input;
                ``TOO_MANY_REQUESTS``, if it is new and the user has enough of them.
        """
        self._check_room(wish)
        moment = self.now()
        record = self.book.create(new_record(wish, moment, self.epoch_s()))
        if record["input_digest"] != wish.digest():
            detail = f"Request {wish.request_id} was made with other photos or settings."
            raise LimnerError("REQUEST_CONFLICT", detail)
        posts = []
        # Who has submitted gets no more forms: the photos of a job that may run stay as they are.
        if record["status"] == RequestStatus.REGISTERED:
            key = keys.config_prefix(wish.request_id) + keys.CONFIG_FILE
            self.bucket.write_config(key, wish.config)
            posts = [
                {**self.bucket.post(form_of(wish, photo), FORM_S), "sha256": photo.sha256}
                for photo in wish.photos
            ]
        return {
            "request_id": wish.request_id,
            "status": record["status"],
            "expires_s": FORM_S,
            "posts": posts,
        }

    def submit(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Hands a registered request over, once all of its photos are there.

        Raises:
            LimnerError: ``REQUEST_NOT_FOUND``, also for a request of another user;
                ``UPLOAD_INCOMPLETE``; ``PHOTO_*``.
        """
        asked = read_submission(event)
        record = self.book.read(asked.request_id)
        if record is None or record["user_id"] != asked.user_id:
            detail = f"{asked.user_id} has no request {asked.request_id}."
            raise LimnerError("REQUEST_NOT_FOUND", detail)
        queued = asked.start == "queue"
        if record["status"] == RequestStatus.REGISTERED:
            self._check_photos(record)
            record = self.book.complete(record, self.now(), queued=queued) or record
        waits = record["status"] == RequestStatus.QUEUED and "owner" not in record
        if waits and "queue" not in record:
            if queued:
                record = self.book.enqueue(record, self.now()) or record
            else:
                self.bus.announce(REQUESTED_EVENT, _input_of(record))
        return {"request_id": asked.request_id, "status": record["status"]}

    def _check_room(self, wish: Wish) -> None:
        count = self.book.count_open(wish.user_id, COUNTED_REQUESTS)
        # A repetition is none too many.
        if count >= MAX_OPEN_REQUESTS and self.book.read(wish.request_id) is None:
            raise LimnerError("TOO_MANY_REQUESTS", f"{count} requests of the user are open.")

    def _check_photos(self, record: Record) -> None:
        prefix = keys.uploads_prefix(record["user_id"], record["request_id"])

        def check(promised: tuple[str, Mapping[str, Any]]) -> LimnerError | None:
            name, told = promised
            photo = Promise(told["sha256"], told["size"], told["type"])
            return problem_of(photo, self.bucket.look(prefix + name))

        problems = [p for p in self.each(check, sorted(record["uploads"].items())) if p]
        missing = [p for p in problems if p.code == "UPLOAD_INCOMPLETE"]
        if found := missing or problems:
            shown = " ".join(problem.message for problem in found[:_SHOWN_PHOTOS])
            more = len(found) - _SHOWN_PHOTOS
            rest = f" And {more} more." if more > 0 else ""
            raise LimnerError(found[0].code, shown + rest)


def new_record(wish: Wish, moment: str, epoch_s: int) -> dict[str, Any]:
    """The record of a wish whose photos are still to come: ``limner.registry.Request``."""
    shard = keys.shard_of(wish.user_id)
    return {
        "request_id": wish.request_id,
        "user_id": wish.user_id,
        "model_id": wish.model_id,
        "status": RequestStatus.REGISTERED.value,
        "created_at": moment,
        "updated_at": moment,
        "shard": shard,
        "open": shard,
        "retrain": wish.retrain,
        "steps": wish.config["steps"],
        "expires_at": epoch_s + RECORD_DAYS * _DAY_S,
        "photos": len(wish.photos),
        "input_digest": wish.digest(),
        "attempt": 1,
        "uploads": {
            photo.file_name: {
                "sha256": photo.sha256,
                "size": photo.size_bytes,
                "type": photo.content_type,
            }
            for photo in wish.photos
        },
    }


def form_of(wish: Wish, photo: Promise) -> Form:
    """The form for one photo: S3 takes these bytes, under this key, and no others."""
    fields = {
        "Content-Type": photo.content_type,
        "x-amz-checksum-algorithm": "SHA256",
        "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(photo.sha256)).decode(),
    }
    exactly = [["eq", f"${name}", value] for name, value in fields.items()]
    size = ["content-length-range", photo.size_bytes, photo.size_bytes]
    return Form(
        key=keys.uploads_prefix(wish.user_id, wish.request_id) + photo.file_name,
        fields=fields,
        conditions=(*exactly, size),
    )


def problem_of(photo: Promise, arrival: Arrival | None) -> LimnerError | None:
    """What is wrong with what has arrived for a promised photo; None if it is that photo.

    Pixels are not decoded here: the training container does that, under limits of its own.
    """
    if arrival is None:
        return LimnerError("UPLOAD_INCOMPLETE", f"{photo.title} has not arrived.")
    promised = (photo.size_bytes, photo.content_type, photo.sha256)
    if promised != (arrival.size_bytes, arrival.content_type, arrival.sha256):
        return LimnerError("UPLOAD_INCOMPLETE", f"{photo.title} is not what was promised.")
    try:
        header = images.read_header(arrival.file, photo.title, whole=False)
        images.check_pixels(photo.title, header)
    except LimnerError as problem:
        return problem
    if header.content_type != photo.content_type:
        detail = f"{photo.title} is {header.content_type}, but was promised otherwise."
        return LimnerError("PHOTO_NOT_AN_IMAGE", detail)
    return None


def _input_of(record: Record) -> dict[str, str | int | bool]:
    return onboarding_input(
        record["request_id"],
        record["user_id"],
        record["model_id"],
        attempt=record.get("attempt", 1),
        retrain=record.get("retrain", False),
    )
