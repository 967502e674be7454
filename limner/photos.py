"""Photos before they are uploaded: kind and size from the header, without decoding a pixel.

A phone full of photos is checked in milliseconds and with the standard library alone; the training
container decodes every photo again under its own limits and trusts nothing that was found here.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limner.contracts.errors import LimnerError
from limner.contracts.limits import (
    MAX_PHOTO_BYTES,
    MAX_PHOTO_PIXELS,
    MAX_PHOTOS,
    MIN_PHOTO_SIDE_PX,
    MIN_PHOTOS,
)

# Suffixes of the files that the CLI picks from a folder; what counts is the content.
SUFFIXES: Final = (".jpeg", ".jpg", ".png", ".webp")

# An open file, or bytes in memory.
Bytes = io.BufferedReader | io.BytesIO
PhotoSource = str | os.PathLike[str] | bytes

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES: Final = 64
_READ_BYTES: Final = 1 << 20
# More segments or chunks than any camera writes; a crafted file ends here instead of looping.
_MAX_PARTS: Final = 20_000
# What people meet in practice and would otherwise puzzle over.
_KNOWN_OTHERS: Final = (
    (4, b"ftypheic", "a HEIC photo"),
    (4, b"ftypheix", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIF photo"),
    (4, b"ftypavif", "an AVIF image"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\x00", "a TIFF or raw photo"),
    (0, b"MM\x00*", "a TIFF or raw photo"),
    (0, b"%PDF", "a PDF"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image says.

    Attributes:
        content_type: ``image/png``, ``image/jpeg`` or ``image/webp``.
        suffix: The file name suffix of that type.
        width_px: Width as stored; an EXIF orientation is not applied.
        height_px: Height as stored.
    """

    content_type: str
    suffix: str
    width_px: int
    height_px: int


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
        """Its name in S3: by content, so that an upload can be repeated and order is no matter."""
        return f"{self.sha256[:20]}{self.header.suffix}"

    def open(self) -> Bytes:
        """Opens the bytes for reading."""
        return _open(self.source)


class _NotAnImageError(Exception):
    """Why a file cannot be read as an image; the end of a sentence that starts with its name."""


def check_photos(sources: Sequence[PhotoSource]) -> tuple[Photo, ...]:
    """Checks photos and returns them without copies, ordered by content.

    Args:
        sources: Paths of files, or the bytes of files. Two equal photos count once.

    Raises:
        LimnerError: ``TOO_FEW_PHOTOS``, ``TOO_MANY_PHOTOS``, ``PHOTO_NOT_AN_IMAGE``,
            ``PHOTO_TOO_SMALL`` or ``PHOTO_TOO_LARGE``; the message names every bad file (the
            first five) with its reason. ``INVALID_INPUT`` for a file that cannot be read.
    """
    _check_count(len(sources), "")
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
    _check_count(len(photos), " different")
    return tuple(photos[digest] for digest in sorted(photos))


def read_header(file: Bytes) -> Header:
    """Reads type and size of the image in a seekable file, and whether the file is all there.

    Raises:
        LimnerError: ``PHOTO_NOT_AN_IMAGE``.
    """
    try:
        return _header(file)
    except _NotAnImageError as reason:
        raise LimnerError("PHOTO_NOT_AN_IMAGE", f"The file {reason}.") from reason


def _check_count(count: int, different: str) -> None:
    if count < MIN_PHOTOS:
        detail = f"Got {count}{different} photos; at least {MIN_PHOTOS} are needed."
        raise LimnerError("TOO_FEW_PHOTOS", detail)
    if count > MAX_PHOTOS:
        detail = f"Got {count}{different} photos; at most {MAX_PHOTOS} are used."
        raise LimnerError("TOO_MANY_PHOTOS", detail)


def _check_one(source: PhotoSource, position: int) -> Photo:
    held = source if isinstance(source, bytes) else Path(source)
    name = f"Photo {position}" if isinstance(held, bytes) else str(held)
    try:
        with _open(held) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            if size_bytes > MAX_PHOTO_BYTES:
                detail = f"{name} has {size_bytes:,} bytes; at most {MAX_PHOTO_BYTES:,} are taken."
                raise LimnerError("PHOTO_TOO_LARGE", detail)
            header = _header(file)
            _check_size(name, header)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except _NotAnImageError as reason:
        raise LimnerError("PHOTO_NOT_AN_IMAGE", f"{name} {reason}.") from reason
    except OSError as error:
        reason_text = error.strerror or "it cannot be read"
        raise LimnerError("INVALID_INPUT", f"{name}: {reason_text}.") from error
    return Photo(name, held, size_bytes, sha256, header)


def _check_size(name: str, header: Header) -> None:
    width, height = header.width_px, header.height_px
    if width * height > MAX_PHOTO_PIXELS:
        detail = f"{name} is {width} x {height}; at most {MAX_PHOTO_PIXELS:,} pixels are safe."
        raise LimnerError("PHOTO_TOO_LARGE", detail)
    if min(width, height) < MIN_PHOTO_SIDE_PX:
        detail = f"{name} is {width} x {height}; each side needs {MIN_PHOTO_SIDE_PX} pixels."
        raise LimnerError("PHOTO_TOO_SMALL", detail)


def _together(problems: list[LimnerError]) -> LimnerError:
    """One error for all bad photos, under the code of the first."""
    shown = " ".join(problem.message for problem in problems[:5])
    rest = len(problems) - 5
    more = f" And {rest} more." if rest > 0 else ""
    return LimnerError(problems[0].code, shown + more)


def _open(source: Path | bytes) -> Bytes:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _header(file: Bytes) -> Header:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    for matches, read in _READERS:
        if matches(head):
            header = read(file)
            if min(header.width_px, header.height_px) < 1:
                raise _NotAnImageError("says that it has no pixels")
            return header
    if not head:
        raise _NotAnImageError("is empty")
    for offset, magic, kind in _KNOWN_OTHERS:
        if head[offset:].startswith(magic):
            raise _NotAnImageError(f"is {kind}, not a PNG, JPEG or WebP image")
    raise _NotAnImageError("is not a PNG, JPEG or WebP image")


def _take(file: Bytes, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _NotAnImageError("is cut off")
    return data


def _skip(file: Bytes, count: int) -> None:
    # Seeking behind the end is no error for a file, so the end is asked for.
    here = file.tell()
    if here + count > file.seek(0, os.SEEK_END):
        raise _NotAnImageError("is cut off")
    file.seek(here + count)


def _is_png(head: bytes) -> bool:
    return head.startswith(_PNG_SIGNATURE)


def _png(file: Bytes) -> Header:
    """PNG specification, 5.3 (chunks: length, type, data, CRC) and 11.2.2 (IHDR)."""
    file.seek(len(_PNG_SIGNATURE))
    length, kind = struct.unpack(">I4s", _take(file, 8))
    if kind != b"IHDR" or length != 13:
        raise _NotAnImageError("has a broken PNG header")
    data = _take(file, length)
    if zlib.crc32(kind + data) != int.from_bytes(_take(file, 4), "big"):
        raise _NotAnImageError("has a damaged PNG header")
    width, height = struct.unpack(">II", data[:8])
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack(">I4s", _take(file, 8))
        _skip(file, length + 4)
        if kind == b"IEND":
            return Header("image/png", ".png", width, height)
    raise _NotAnImageError("has too many PNG chunks")


def _is_jpeg(head: bytes) -> bool:
    return head.startswith(b"\xff\xd8\xff")


# Start-of-frame markers hold the size; of 0xC0 to 0xCF three are no frames (ITU T.81, table B.1).
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_SCAN: Final = 0xDA
_JPEG_END: Final = b"\xff\xd9"


def _jpeg(file: Bytes) -> Header:
    """ITU T.81, annex B: segments of marker, length and data up to the first scan."""
    file.seek(2)
    size: tuple[int, int] | None = None
    for _ in range(_MAX_PARTS):
        marker = _jpeg_marker(file)
        if marker in _JPEG_BARE:
            continue
        (length,) = struct.unpack(">H", _take(file, 2))
        if length < 2:
            raise _NotAnImageError("has a broken JPEG segment")
        if marker == _JPEG_SCAN:
            break
        if marker in _JPEG_FRAMES:
            _, height, width = struct.unpack(">BHH", _take(file, 5))
            size = (width, height)
            length -= 5
            if length < 2:
                raise _NotAnImageError("has a broken JPEG header")
        _skip(file, length - 2)
    if size is None:
        raise _NotAnImageError("has no JPEG frame header")
    if not _contains(file, _JPEG_END):
        raise _NotAnImageError("is cut off")
    return Header("image/jpeg", ".jpg", *size)


def _jpeg_marker(file: Bytes) -> int:
    if _take(file, 1) != b"\xff":
        raise _NotAnImageError("has a broken JPEG segment")
    for _ in range(_MAX_PARTS):
        byte = _take(file, 1)[0]
        if byte != 0xFF:  # 0xFF before a marker is fill
            return byte
    raise _NotAnImageError("has a broken JPEG segment")


def _contains(file: Bytes, wanted: bytes) -> bool:
    """Whether the rest of a file holds two bytes; scan data never holds a marker by chance."""
    tail = b""
    while data := file.read(_READ_BYTES):
        if wanted in tail + data:
            return True
        tail = data[-1:]
    return False


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _webp(file: Bytes) -> Header:
    """WebP container specification: RIFF, then a VP8 (lossy), VP8L (lossless) or VP8X chunk."""
    file.seek(4)
    (riff_bytes,) = struct.unpack("<I", _take(file, 4))
    file.seek(8)
    _skip(file, riff_bytes)
    file.seek(12)
    kind = _take(file, 4)
    _take(file, 4)
    if kind == b"VP8X":
        data = _take(file, 10)
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L":
        data = _take(file, 5)
        if data[0] != 0x2F:
            raise _NotAnImageError("has a broken WebP header")
        bits = int.from_bytes(data[1:], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        data = _take(file, 10)
        if data[3:6] != b"\x9d\x01\x2a":
            raise _NotAnImageError("has a broken WebP header")
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", data[6:]))
    else:
        raise _NotAnImageError("has no WebP image chunk")
    return Header("image/webp", ".webp", width, height)


_READERS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[Bytes], Header]], ...]] = (
    (_is_png, _png),
    (_is_jpeg, _jpeg),
    (_is_webp, _webp),
)
