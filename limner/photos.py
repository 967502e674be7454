"""Photos before they are uploaded: which files of a user are photos, and what is in them.

A phone full of photos is checked in milliseconds and with the standard library alone.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limner.contracts.errors import LimnerError
from limner.contracts.images import (
    Header,
    check_bytes,
    check_count,
    check_pixels,
    file_name,
    read_header,
)

# Suffixes of the files that the CLI picks from a folder; what counts is the content.
SUFFIXES: Final = (".jpeg", ".jpg", ".png", ".webp")

PhotoSource = str | os.PathLike[str] | bytes


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo that passed the checks.

    Attributes:
        name: What to call it in messages: the path, or its position in the call.
        source: Where its bytes come from; a file is read again when it is uploaded.
        size_bytes: Number of bytes.
        sha256: Hash of the bytes, 64 hexadecimal digits.
        header: Type and size in pixels.
    """

    name: str
    source: Path | bytes
    size_bytes: int
    sha256: str
    header: Header

    @property
    def key_name(self) -> str:
        """Its name in S3."""
        return file_name(self.sha256, self.header.content_type)

    def open(self) -> io.BufferedReader | io.BytesIO:
        """Opens the bytes for reading."""
        return _open(self.source)


def check_photos(sources: Sequence[PhotoSource]) -> tuple[Photo, ...]:
    """Checks photos and returns them without copies, ordered by content.

    Args:
        sources: Paths of files, or the bytes of files. Two equal photos count once.

    Raises:
        LimnerError: ``TOO_FEW_PHOTOS``, ``TOO_MANY_PHOTOS``, ``PHOTO_NOT_AN_IMAGE``,
            ``PHOTO_TOO_SMALL`` or ``PHOTO_TOO_LARGE``; the message names every bad file (the
            first five) with its reason. ``INVALID_INPUT`` for a file that cannot be read.
    """
    check_count(len(sources), "")
    photos: dict[str, Photo] = {}
    problems: list[LimnerError] = []
    for position, source in enumerate(sources, start=1):
        try:
            photo = _check_one(source, position)
        except LimnerError as problem:
            problems.append(problem)
        else:
            photos.setdefault(photo.sha256, photo)
    if problems:
        raise _together(problems)
    check_count(len(photos), " different")
    return tuple(photos[digest] for digest in sorted(photos))


def _check_one(source: PhotoSource, position: int) -> Photo:
    held = source if isinstance(source, bytes) else Path(source)
    name = f"Photo {position}" if isinstance(held, bytes) else str(held)
    try:
        with _open(held) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            check_bytes(name, size_bytes)
            header = read_header(file, name)
            check_pixels(name, header)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason_text = error.strerror or "it cannot be read"
        raise LimnerError("INVALID_INPUT", f"{name}: {reason_text}.") from error
    return Photo(name, held, size_bytes, sha256, header)


def _together(problems: list[LimnerError]) -> LimnerError:
    """One error for all bad photos, under the code of the first."""
    shown = " ".join(problem.message for problem in problems[:5])
    rest = len(problems) - 5
    more = f" And {rest} more." if rest > 0 else ""
    return LimnerError(problems[0].code, shown + more)


def _open(source: Path | bytes) -> io.BufferedReader | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
