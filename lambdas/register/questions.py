"""What ``register`` is asked: the two events, read strictly. Pure.

The events come from apps, and what is in them from apps' users, so nothing is trusted: types,
counts, bounds and grammars are checked before anything is written, and messages name positions,
fields and the first digits of a hash, never a value that a user has chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from limner.contracts import images, keys
from limner.contracts.config_table import ConfigValue, complete_config
from limner.contracts.digests import input_digest
from limner.contracts.errors import LimnerError

MAX_TOKEN_CHARS: Final = 256

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN_DIGITS: Final = 12
_ASKED: Final = frozenset(
    {"action", "user_id", "model_id", "client_token", "retrain", "config", "photos"}
)
_SUBMITTED: Final = frozenset({"action", "request_id", "user_id", "start"})

Start = Literal["queue", "event"]


@dataclass(frozen=True, slots=True)
class Promise:
    """A photo that is to come.

    Attributes:
        sha256: Hash of its bytes, 64 hexadecimal digits.
        size_bytes: Number of its bytes.
        content_type: Its type.
    """

    sha256: str
    size_bytes: int
    content_type: str

    @property
    def file_name(self) -> str:
        """Its name in S3."""
        return images.file_name(self.sha256, self.content_type)

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return f"Photo {self.sha256[:_SHOWN_DIGITS]}"


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that is to be registered.

    Attributes:
        request_id: Its name.
        user_id: Whose model.
        model_id: Which of the user's models.
        retrain: Whether to train a new version when the model is ready already.
        config: All fields of the training config.
        photos: The different photos, ordered by content.
    """

    request_id: str
    user_id: str
    model_id: str
    retrain: bool
    config: Mapping[str, ConfigValue]
    photos: tuple[Promise, ...]

    def digest(self) -> str:
        """What tells a repeat of this wish from a conflict with it."""
        hashes = (photo.sha256 for photo in self.photos)
        return input_digest(self.user_id, self.model_id, self.retrain, self.config, hashes)


@dataclass(frozen=True, slots=True)
class Submission:
    """A registered request whose photos shall be there.

    Attributes:
        request_id: The request.
        user_id: Whose it must be.
        start: Who starts it.
    """

    request_id: str
    user_id: str
    start: Start


def read_wish(event: Mapping[str, Any]) -> Wish:
    """Reads the event of the action ``register``.

    Raises:
        LimnerError: ``INVALID_INPUT``, ``TOO_FEW_PHOTOS``, ``TOO_MANY_PHOTOS``,
            ``PHOTO_NOT_AN_IMAGE`` or ``PHOTO_TOO_LARGE``.
    """
    _refuse_unknown(event, _ASKED)
    user_id = keys.check_user_id(_text(event, "user_id"))
    model_id = keys.check_model_id(_text(event, "model_id", keys.DEFAULT_MODEL_ID))
    retrain, config = event.get("retrain", False), event.get("config", {})
    if not isinstance(retrain, bool):
        raise LimnerError("INVALID_INPUT", "retrain must be true or false.")
    if not isinstance(config, Mapping):
        raise LimnerError("INVALID_INPUT", "config must be an object.")
    return Wish(
        request_id=_request_id(user_id, event.get("client_token")),
        user_id=user_id,
        model_id=model_id,
        retrain=retrain,
        config=complete_config(config),
        photos=_read_photos(event.get("photos")),
    )


def read_submission(event: Mapping[str, Any]) -> Submission:
    """Reads the event of the action ``submit``.

    Raises:
        LimnerError: ``INVALID_INPUT``.
    """
    _refuse_unknown(event, _SUBMITTED)
    start = _text(event, "start", "queue")
    if start not in ("queue", "event"):
        raise LimnerError("INVALID_INPUT", "start must be queue or event.")
    return Submission(
        keys.check_request_id(_text(event, "request_id")),
        keys.check_user_id(_text(event, "user_id")),
        cast("Start", start),
    )


def _request_id(user_id: str, client_token: object) -> str:
    if client_token is None:
        return keys.new_request_id()
    sound = isinstance(client_token, str) and 0 < len(client_token) <= MAX_TOKEN_CHARS
    try:
        if sound:
            return keys.request_id_of_token(user_id, str(client_token))
    except UnicodeEncodeError:
        pass  # half of a surrogate pair: no text
    detail = f"client_token must be a text of 1 to {MAX_TOKEN_CHARS} characters."
    raise LimnerError("INVALID_INPUT", detail)


def _read_photos(entries: object) -> tuple[Promise, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise LimnerError("INVALID_INPUT", "photos must be a list.")
    images.check_count(len(entries))
    photos: dict[str, Promise] = {}
    for position, entry in enumerate(entries, start=1):
        photo = _read_photo(entry, f"photos[{position}]")
        if photos.setdefault(photo.sha256, photo) != photo:
            raise LimnerError("INVALID_INPUT", f"{photo.title} is promised in two ways.")
    images.check_count(len(photos), " different")
    if len({photo.file_name for photo in photos.values()}) < len(photos):
        raise LimnerError("INVALID_INPUT", "Two photos have hashes that nearly agree.")
    return tuple(photos[sha256] for sha256 in sorted(photos))


def _read_photo(entry: object, place: str) -> Promise:
    if not isinstance(entry, Mapping) or set(entry) != {"sha256", "size", "type"}:
        raise LimnerError("INVALID_INPUT", f"{place} must have sha256, size and type, no more.")
    sha256, size, kind = entry["sha256"], entry["size"], entry["type"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        detail = f"{place}: sha256 must be 64 hexadecimal digits, in lower case."
        raise LimnerError("INVALID_INPUT", detail)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise LimnerError("INVALID_INPUT", f"{place}: size must be a number of bytes.")
    if not isinstance(kind, str) or kind not in images.SUFFIX_OF:
        detail = f"{place}: type must be one of {', '.join(images.SUFFIX_OF)}."
        raise LimnerError("PHOTO_NOT_AN_IMAGE", detail)
    photo = Promise(sha256, size, kind)
    images.check_bytes(photo.title, size)
    return photo


def _refuse_unknown(event: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(str(name)[:40] for name in event if name not in known):
        raise LimnerError("INVALID_INPUT", f"{unknown[0]!r} is no field of this action.")


def _text(event: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = event.get(field, default)
    if not isinstance(value, str):
        raise LimnerError("INVALID_INPUT", f"{field} must be a text.")
    return value
