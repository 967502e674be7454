"""Images by their headers: kind and size, without decoding a pixel and without any library.

The app looks at photos before it uploads them, and the function ``register`` at what has arrived;
the training container decodes every photo again under its own limits and trusts neither.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from limner.contracts.errors import LimnerError
from limner.contracts.limits import (
    MAX_PHOTO_BYTES,
    MAX_PHOTO_PIXELS,
    MAX_PHOTOS,
    MIN_PHOTO_SIDE_PX,
    MIN_PHOTOS,
)

#: Suffix of each type that is taken.
SUFFIX_OF: Final = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}


class Bytes(Protocol):
    """A seekable file of bytes; where they come from is its own business."""

    def read(self, size: int = -1, /) -> bytes:
        """Reads up to that many bytes, fewer at the end alone."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves, and returns the new place."""
        ...

    def tell(self) -> int:
        """The present place."""
        ...


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


def file_name(sha256: str, content_type: str) -> str:
    """A photo's name in S3: by content, so that an upload can be repeated and order is no matter.

    Args:
        sha256: Hash of its bytes, 64 hexadecimal digits.
        content_type: A type of ``SUFFIX_OF``.
    """
    return f"{sha256[:20]}{SUFFIX_OF[content_type]}"


class _NotAnImageError(Exception):
    """Why a file cannot be read as an image; the end of a sentence that starts with its name."""


def read_header(file: Bytes, name: str = "The file", *, whole: bool = True) -> Header:
    """Reads type and size of the image in a seekable file.

    Args:
        file: The file.
        name: What to call it in messages.
        whole: Whether to look, too, if the file is all there; this may read the file to its end.

    Raises:
        LimnerError: ``PHOTO_NOT_AN_IMAGE``.
    """
    try:
        return _header(file, whole)
    except _NotAnImageError as reason:
        raise LimnerError("PHOTO_NOT_AN_IMAGE", f"{name} {reason}.") from reason


def check_pixels(name: str, header: Header) -> None:
    """Refuses an image that is unsafe to decode, or too small to learn from.

    Raises:
        LimnerError: ``PHOTO_TOO_LARGE`` or ``PHOTO_TOO_SMALL``.
    """
    width, height = header.width_px, header.height_px
    if width * height > MAX_PHOTO_PIXELS:
        detail = f"{name} is {width} x {height}; at most {MAX_PHOTO_PIXELS:,} pixels are safe."
        raise LimnerError("PHOTO_TOO_LARGE", detail)
    if min(width, height) < MIN_PHOTO_SIDE_PX:
        detail = f"{name} is {width} x {height}; each side needs {MIN_PHOTO_SIDE_PX} pixels."
        raise LimnerError("PHOTO_TOO_SMALL", detail)


def check_bytes(name: str, size_bytes: int) -> None:
    """Refuses a file that is too large.

    Raises:
        LimnerError: ``PHOTO_TOO_LARGE``.
    """
    if size_bytes > MAX_PHOTO_BYTES:
        detail = f"{name} has {size_bytes:,} bytes; at most {MAX_PHOTO_BYTES:,} are taken."
        raise LimnerError("PHOTO_TOO_LARGE", detail)


def check_count(count: int, different: str = "") -> None:
    """Refuses too few and too many photos.

    Raises:
        LimnerError: ``TOO_FEW_PHOTOS`` or ``TOO_MANY_PHOTOS``.
    """
    if count < MIN_PHOTOS:
        detail = f"Got {count}{different} photos; at least {MIN_PHOTOS} are needed."
        raise LimnerError("TOO_FEW_PHOTOS", detail)
    if count > MAX_PHOTOS:
        detail = f"Got {count}{different} photos; at most {MAX_PHOTOS} are used."
        raise LimnerError("TOO_MANY_PHOTOS", detail)


def _header(file: Bytes, whole: bool) -> Header:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    for matches, read in _READERS:
        if matches(head):
            header = read(file, whole)
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


def _png(file: Bytes, whole: bool) -> Header:
    """PNG specification, 5.3 (chunks: length, type, data, CRC) and 11.2.2 (IHDR)."""
    file.seek(len(_PNG_SIGNATURE))
    length, kind = struct.unpack(">I4s", _take(file, 8))
    if kind != b"IHDR" or length != 13:
        raise _NotAnImageError("has a broken PNG header")
    data = _take(file, length)
    if zlib.crc32(kind + data) != int.from_bytes(_take(file, 4), "big"):
        raise _NotAnImageError("has a damaged PNG header")
    width, height = struct.unpack(">II", data[:8])
    if not whole:
        return Header("image/png", ".png", width, height)
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


def _jpeg(file: Bytes, whole: bool) -> Header:
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
            if not whole:
                break
            length -= 5
            if length < 2:
                raise _NotAnImageError("has a broken JPEG header")
        _skip(file, length - 2)
    if size is None:
        raise _NotAnImageError("has no JPEG frame header")
    if whole and not _contains(file, _JPEG_END):
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


def _webp(file: Bytes, whole: bool) -> Header:
    """WebP container specification: RIFF, then a VP8 (lossy), VP8L (lossless) or VP8X chunk."""
    file.seek(4)
    (riff_bytes,) = struct.unpack("<I", _take(file, 4))
    if whole:
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


_READERS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[Bytes, bool], Header]], ...]] = (
    (_is_png, _png),
    (_is_jpeg, _jpeg),
    (_is_webp, _webp),
)
