"""Headers of real, cut and lying images, against Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.contracts.errors import LimnerError
from limner.contracts.images import read_header
from limner.contracts.limits import MAX_PHOTO_BYTES
from limner.photos import check_photos
from tests.unit.client.world import photo, photos


def encode(
    kind: str, size: tuple[int, int] = (70, 40), mode: str = "RGB", **options: object
) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(size_bytes: int = 40_000) -> bytes:
    found = Image.Exif()
    found[0x010E] = "x" * size_bytes
    return found.tobytes()


GOOD = {
    "png": encode("PNG"),
    "png with alpha": encode("PNG", mode="RGBA"),
    "png palette": encode("PNG", mode="P"),
    "png interlaced chunks": encode("PNG", compress_level=0),
    "jpeg": encode("JPEG"),
    "jpeg progressive": encode("JPEG", progressive=True),
    "jpeg grey": encode("JPEG", mode="L"),
    "jpeg with exif": encode("JPEG", exif=exif()),
    "jpeg with profile": encode("JPEG", icc_profile=b"p" * 200_000),
    "jpeg with trailer": encode("JPEG") + b"maker notes",
    "webp lossy": encode("WEBP"),
    "webp lossless": encode("WEBP", lossless=True),
    "webp extended": encode("WEBP", exif=exif(100)),
    "webp with alpha": encode("WEBP", mode="RGBA"),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("size", [(70, 40)])
def test_a_header_says_what_pillow_says(data: bytes, size: tuple[int, int]) -> None:
    header = read_header(io.BytesIO(data))
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width_px, header.height_px) == image.size == size
        assert header.content_type == Image.MIME[str(image.format)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (255, 257), (1, 3000), (4096, 2)])
@pytest.mark.parametrize("lossless", [False, True])
def test_sizes(kind: str, size: tuple[int, int], lossless: bool) -> None:
    options = {"lossless": lossless} if kind == "WEBP" else {}
    header = read_header(io.BytesIO(encode(kind, size, **options)))
    assert (header.width_px, header.height_px) == size


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9])
def test_a_cut_file_is_refused(data: bytes, kept: float) -> None:
    if data.endswith(b"maker notes"):
        data = data.removesuffix(b"maker notes")
    with pytest.raises(LimnerError) as caught:
        read_header(io.BytesIO(data[: int(len(data) * kept)]))
    assert caught.value.code == "PHOTO_NOT_AN_IMAGE"


OTHERS = {
    "is empty": b"",
    "is a HEIC photo": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "is a GIF": encode("GIF"),
    "is a BMP": encode("BMP"),
    "is a TIFF": encode("TIFF"),
    "is not a PNG, JPEG or WebP image": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "has a broken PNG header": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IDAT") + bytes(80),
    "has no JPEG frame header": b"\xff\xd8\xff\xda\x00\x02" + bytes(40) + b"\xff\xd9",
    "has a broken JPEG segment": b"\xff\xd8\xff\xe0\x00\x00" + bytes(80),
    "has no WebP image chunk": b"RIFF" + struct.pack("<I", 60) + b"WEBPJUNK" + bytes(60),
    "has a broken WebP header": b"RIFF" + struct.pack("<I", 60) + b"WEBPVP8L" + bytes(60),
}


@pytest.mark.parametrize("reason", OTHERS.keys())
def test_other_files_are_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(LimnerError, match=reason) as caught:
        read_header(io.BytesIO(OTHERS[reason]))
    assert caught.value.code == "PHOTO_NOT_AN_IMAGE"


def lying_png(width: int, height: int, crc_of: bytes | None = None) -> bytes:
    """A PNG that is sound but for the size that its header claims."""
    data = bytearray(photo(1))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(crc_of or bytes(data[12:29])))
    return bytes(data)


def test_a_bomb_is_refused_by_its_claim() -> None:
    with pytest.raises(LimnerError, match="Photo 3 is 100000 x 100000") as caught:
        check_photos([*photos(2), lying_png(100_000, 100_000)])
    assert caught.value.code == "PHOTO_TOO_LARGE"


def test_no_pixels_and_a_wrong_checksum_are_refused() -> None:
    with pytest.raises(LimnerError, match="no pixels"):
        check_photos([*photos(2), lying_png(0, 40)])
    with pytest.raises(LimnerError, match="damaged PNG header"):
        check_photos([*photos(2), lying_png(64, 64, crc_of=b"other")])


def test_a_photo_that_is_too_small_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small.jpg"
    small.write_bytes(photo(1, "JPEG", (31, 500)))
    with pytest.raises(LimnerError, match=r"small\.jpg is 31 x 500; each side needs 32") as caught:
        check_photos([*photos(3), small])
    assert caught.value.code == "PHOTO_TOO_SMALL"


def test_a_file_that_is_too_large_is_refused_without_reading_it(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(MAX_PHOTO_BYTES + 1)
    with pytest.raises(LimnerError, match=r"large\.png has 25,000,001 bytes") as caught:
        check_photos([*photos(2), large])
    assert caught.value.code == "PHOTO_TOO_LARGE"


def test_all_bad_photos_are_named_at_once(tmp_path: Path) -> None:
    paths = []
    for number in range(7):
        paths.append(tmp_path / f"note-{number}.png")
        paths[-1].write_text("no image")
    with pytest.raises(LimnerError) as caught:
        check_photos([*photos(3), *paths])
    assert all(f"note-{number}.png is not a PNG" in str(caught.value) for number in range(5))
    assert "And 2 more." in str(caught.value)


def test_counts() -> None:
    with pytest.raises(LimnerError, match="Got 2 photos; at least 3") as caught:
        check_photos(photos(2))
    assert caught.value.code == "TOO_FEW_PHOTOS"
    with pytest.raises(LimnerError, match="Got 51 photos; at most 50") as caught:
        check_photos(photos(51))
    assert caught.value.code == "TOO_MANY_PHOTOS"
    with pytest.raises(LimnerError, match="Got 2 different photos"):
        check_photos([*photos(2), photo(1), photo(0)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match=r"gone\.png: No such file") as caught:
        check_photos([*photos(3), str(tmp_path / "gone.png")])
    assert caught.value.code == "INVALID_INPUT"


def test_order_copies_and_names_do_not_matter(tmp_path: Path) -> None:
    lying_name = tmp_path / "really-a-jpeg.png"
    lying_name.write_bytes(photo(7, "JPEG"))
    first = check_photos([photo(0), photo(1), lying_name])
    again = check_photos([photo(7, "JPEG"), photo(1), photo(0), photo(1)])
    assert [p.key_name for p in first] == [p.key_name for p in again]
    assert sum(p.key_name.endswith(".jpg") for p in first) == 1


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from(list(GOOD.values())),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 3_000),
)
def test_no_damage_makes_it_crash(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data[: max(0, len(data) - cut)])
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    try:
        header = read_header(io.BytesIO(bytes(damaged)))
    except LimnerError as error:
        assert error.code == "PHOTO_NOT_AN_IMAGE"
    else:
        assert header.width_px > 0
        assert header.height_px > 0
