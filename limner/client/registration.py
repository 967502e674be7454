"""Registered requests: photos that somebody else uploads, such as a user's browser.

::

    app       register ─────────────> row REGISTERED, forms that expire
    browser            each photo by its form ──> S3 takes exactly the promised bytes
    app       submit ───────────────> the function looks at what arrived ─> QUEUED

The function ``register`` does the work, so the app's role needs no right to the bucket: it invokes
the function, and ``submit`` reads the request's row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import urllib3

from limner.client.errors import translated
from limner.contracts.errors import REGISTRY, LimnerError
from limner.contracts.statuses import RequestStatus
from limner.photos import Photo, PhotoSource, check_photos

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

_UPLOADS_AT_ONCE: Final = 4
_TIMEOUT: Final = urllib3.Timeout(connect=5, read=60)
# A form may be posted again: it can only put the same bytes under the same key.
_RETRIES: Final = urllib3.Retry(
    total=4, backoff_factor=0.5, status_forcelist=(500, 503), allowed_methods=None, redirect=2
)


@dataclass(frozen=True, slots=True)
class PromisedPhoto:
    """A photo that is somewhere else, as its holder describes it.

    Attributes:
        sha256: Hash of the bytes, 64 hexadecimal digits.
        size_bytes: Number of bytes.
        content_type: ``image/png``, ``image/jpeg`` or ``image/webp``.
    """

    sha256: str
    size_bytes: int
    content_type: str


@dataclass(frozen=True, slots=True)
class Post:
    """The form that uploads one photo: a POST of the fields, and ``file`` as the last of them.

    Attributes:
        url: Where to post it.
        fields: The fields, in order.
        sha256: Which photo it takes.
    """

    url: str
    fields: Mapping[str, str]
    sha256: str


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered request and the forms for its photos.

    Attributes:
        request_id: The request.
        status: REGISTERED; another one if the same call was made and submitted before.
        expires_s: Seconds until the forms end; the same call gives fresh ones.
        posts: One form a photo; none once the request is submitted.
    """

    request_id: str
    status: RequestStatus
    expires_s: int
    posts: tuple[Post, ...]

    def upload(self, photos: Sequence[PhotoSource]) -> None:
        """Posts the photos, for programs that hold them; doing it again changes nothing.

        Raises:
            LimnerError: ``PHOTO_*`` and the other errors of the photos; ``INVALID_INPUT`` for a
                photo that was not registered; ``UPLOAD_INCOMPLETE``, with S3's answer.
        """
        if self.status is not RequestStatus.REGISTERED:
            return
        forms = {post.sha256: post for post in self.posts}
        checked = check_photos(photos)
        strange = [photo.name for photo in checked if photo.sha256 not in forms]
        if strange:
            raise LimnerError("INVALID_INPUT", f"{strange[0]} was not registered.")
        with (
            urllib3.PoolManager(maxsize=_UPLOADS_AT_ONCE, retries=_RETRIES) as http,
            ThreadPoolExecutor(_UPLOADS_AT_ONCE, thread_name_prefix="limner-post") as pool,
        ):
            for _ in pool.map(lambda photo: _post(http, forms[photo.sha256], photo), checked):
                pass


def _post(http: urllib3.PoolManager, form: Post, photo: Photo) -> None:
    with photo.open() as file:
        # S3 reads the fields up to the file and none behind it.
        part = ("file", (photo.key_name, file.read()))
    fields: list[tuple[str, str] | tuple[str, tuple[str, bytes]]] = [*form.fields.items(), part]
    try:
        answer = http.request("POST", form.url, fields=fields, timeout=_TIMEOUT)
    except urllib3.exceptions.HTTPError as error:
        detail = f"{photo.name}: {type(error).__name__}."
        raise LimnerError("UPLOAD_INCOMPLETE", detail) from error
    if answer.status >= 300:
        reason = " ".join(answer.data[:500].decode(errors="replace").split())
        raise LimnerError("UPLOAD_INCOMPLETE", f"{photo.name}: {answer.status}: {reason}")


def promises(photos: Sequence[PromisedPhoto | PhotoSource]) -> list[dict[str, object]]:
    """What the function is told of the photos; those that are at hand are checked first.

    Raises:
        LimnerError: ``PHOTO_*`` and the other errors of photos that are at hand.
    """
    promised = [photo for photo in photos if isinstance(photo, PromisedPhoto)]
    at_hand = [photo for photo in photos if not isinstance(photo, PromisedPhoto)]
    if promised and at_hand:
        raise LimnerError("INVALID_INPUT", "Give photos, or what they promise to be, not both.")
    if not promised:
        promised = [
            PromisedPhoto(photo.sha256, photo.size_bytes, photo.header.content_type)
            for photo in check_photos(at_hand)
        ]
    return [
        {"sha256": photo.sha256, "size": photo.size_bytes, "type": photo.content_type}
        for photo in promised
    ]


def ask(functions: LambdaClient, function: str, question: Mapping[str, object]) -> dict[str, Any]:
    """Invokes the function ``register``.

    Args:
        functions: A client of Lambda.
        function: The function's name.
        question: Its event.

    Raises:
        LimnerError: What the function answers; ``NOT_DEPLOYED`` where there is no such function;
            ``INTERNAL`` if it broke down.
    """
    if not function:
        detail = "No function register is known: update the stack, or set LIMNER_REGISTER_FUNCTION."
        raise LimnerError("NOT_DEPLOYED", detail)
    with translated():
        answer = functions.invoke(FunctionName=function, Payload=json.dumps(question).encode())
        document = json.loads(answer["Payload"].read())
    if "FunctionError" in answer:
        kind = document.get("errorType", "") if isinstance(document, dict) else ""
        raise LimnerError("INTERNAL", f"The function register broke down: {kind or 'no reason'}.")
    if "error" in document:
        error = document["error"]
        known = error["code"] in REGISTRY
        raise LimnerError(error["code"] if known else "INTERNAL", error["message"])
    return dict(document)


def read_registration(answer: Mapping[str, Any]) -> Registration:
    """The registration that the function answers."""
    return Registration(
        request_id=answer["request_id"],
        status=RequestStatus(answer["status"]),
        expires_s=answer["expires_s"],
        posts=tuple(Post(p["url"], dict(p["fields"]), p["sha256"]) for p in answer["posts"]),
    )
