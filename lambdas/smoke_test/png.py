"""As much of PNG as it takes to see whether an image shows anything at all.

After the PNG specification, third edition (W3C): signature, chunks with CRC-32, scan lines behind
a filter each, zlib around all. Truecolour and greyscale of 8 bits, not interlaced: what image
libraries write by default.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Side of the largest image that an endpoint of ours draws, and twice that for what may come.
MAX_SIDE_PX: Final = 2_048
_CHANNELS: Final = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type


class PngError(ValueError):
    """The bytes are not a PNG that this module can read; the text says why."""


@dataclass(frozen=True, slots=True)
class Png:
    """A decoded header and the still compressed rows.

    Attributes:
        width: Pixels.
        height: Pixels.
        channels: Bytes a pixel.
        compressed: The zlib stream of filtered rows.
    """

    width: int
    height: int
    channels: int
    compressed: bytes

    @classmethod
    def read(cls, data: bytes) -> Png:
        """Reads the chunks of a PNG.

        Raises:
            PngError: If it is none, if a checksum is wrong, or if it is of a kind not read here.
        """
        if not data.startswith(SIGNATURE):
            raise PngError("the answer is not a PNG")
        chunks = list(_chunks(data[len(SIGNATURE) :]))
        if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
            raise PngError("the PNG has no header")
        if chunks[-1][0] != b"IEND":
            raise PngError("the PNG has no end")
        width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
        if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
            raise PngError(f"the PNG measures {width} x {height} pixels")
        if depth != 8 or colour not in _CHANNELS or interlace != 0:
            raise PngError("the PNG is of a kind that is not drawn here")
        compressed = b"".join(body for kind, body in chunks if kind == b"IDAT")
        return cls(width, height, _CHANNELS[colour], compressed)

    def rows(self) -> Iterator[bytes]:
        """The rows of pixels, top to bottom, ``width * channels`` bytes each.

        Raises:
            PngError: If the stream is damaged or too short.
        """
        length = self.width * self.channels
        size = self.height * (length + 1)
        try:
            # Bounded: a small stream may unpack to gigabytes.
            raw = zlib.decompressobj().decompress(self.compressed, size)
        except zlib.error as error:
            raise PngError("the PNG's pixels are damaged") from error
        if len(raw) != size:
            raise PngError("the PNG ends before its last row")
        above = bytes(length)
        for start in range(0, size, length + 1):
            above = _unfilter(raw[start], raw[start + 1 : start + 1 + length], above, self.channels)
            yield above

    def is_constant(self) -> bool:
        """Whether all pixels have the same colour. Reads no further than it must."""
        rows = self.rows()
        first = next(rows)
        if first != first[: self.channels] * self.width:
            return False
        return all(row == first for row in rows)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise PngError("the PNG breaks off")
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) != 4:
            raise PngError("the PNG breaks off")
        if struct.unpack(">I", checksum)[0] != zlib.crc32(kind + body):
            raise PngError("a checksum of the PNG is wrong")
        yield kind, body
        at += 12 + length


def _unfilter(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """Undoes a row's filter; ``step`` is the number of bytes to the pixel on the left."""
    if kind == 0:
        return row
    if kind == 2:
        return bytes((x + b) & 255 for x, b in zip(row, above, strict=True))
    out = bytearray(len(row))
    for i, x in enumerate(row):
        left = out[i - step] if i >= step else 0
        corner = above[i - step] if i >= step else 0
        match kind:
            case 1:
                predicted = left
            case 3:
                predicted = (left + above[i]) // 2
            case 4:
                predicted = _paeth(left, above[i], corner)
            case _:
                raise PngError(f"the PNG uses an unknown filter {kind}")
        out[i] = (x + predicted) & 255
    return bytes(out)


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    distances = (abs(guess - left), abs(guess - above), abs(guess - corner))
    return (left, above, corner)[distances.index(min(distances))]
