from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from limner.contracts.errors import LimnerError
from limner.contracts.limits import MAX_PHOTO_BYTES, MAX_PHOTOS
from training.photos import load_photo, load_photos


def encoded(size: tuple[int, int], kind: str = "PNG", **options: object) -> bytes:
    """An image whose left half is red and whose right half is blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(path: Path) -> LimnerError:
    with pytest.raises(LimnerError) as caught:
        load_photo(path, keep_side_px=64)
    return caught.value


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG whose header claims any size; there are hardly any pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_read_and_scaled_down(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded((400, 200), kind))
    image = load_photo(path, keep_side_px=64)
    assert (image.mode, image.size) == ("RGB", (128, 64))
    red, _, blue = image.getpixel((10, 32))
    assert red > 200 > 50 > blue


def test_a_small_photo_is_not_scaled_up(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded((40, 50)))
    assert load_photo(path, keep_side_px=64).size == (40, 50)


def test_the_orientation_of_a_phone_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90 degrees clockwise to see it upright
    path = tmp_path / "phone.jpg"
    path.write_bytes(encoded((80, 40), "JPEG", exif=exif.tobytes(), subsampling=0, quality=95))
    image = load_photo(path, keep_side_px=64)
    assert image.size == (40, 80)
    assert image.getpixel((20, 5))[0] > 200  # red was left and is on top now
    assert image.getpixel((20, 75))[2] > 200


def test_transparency_becomes_white(tmp_path: Path) -> None:
    path = tmp_path / "cut-out.png"
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(path)
    assert load_photo(path, keep_side_px=64).getpixel((5, 5)) == (255, 255, 255)


def test_a_photo_that_is_averaged_first_looks_like_one_that_is_not(tmp_path: Path) -> None:
    noise = Image.effect_noise((31, 21), 90).resize((901, 603), Image.Resampling.BICUBIC)
    noise.save(tmp_path / "large.png")
    photo = load_photo(tmp_path / "large.png", keep_side_px=64)
    plain = noise.convert("RGB").resize((96, 64), Image.Resampling.LANCZOS)
    assert photo.size == plain.size
    apart = [low for _, low in ImageChops.difference(photo, plain).getextrema()]
    assert max(apart) < 16


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_largest_photo_takes_less_than_300_mb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "large.png"
    Image.new(mode, (8_000, 5_000)).save(path, compress_level=1)
    program = (
        "import sys; from pathlib import Path; from training.photos import load_photo;"
        "load_photo(Path(sys.argv[1]), keep_side_px=128);"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, check=True, text=True
    )
    peak_mb = int(done.stdout) * 1024 / 1e6
    sys.stdout.write(f"40 megapixels of {mode}: {peak_mb:.0f} MB\n")
    assert 160 < peak_mb < 300, "the pixels alone take 160 MB"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("letter.txt", b"Dear Sir or Madam"),
        ("empty.png", b""),
        ("cut-off.png", encoded((200, 200))[:300]),
        ("cut-off.jpg", encoded((200, 200), "JPEG")[:-400]),
        ("animation.gif", encoded((64, 64), "GIF")),
        ("drawing.tiff", encoded((64, 64), "TIFF")),
    ],
)
def test_what_is_not_a_whole_image_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert error.code == "PHOTO_NOT_AN_IMAGE"
    assert name in str(error)
    assert "Fix: Replace the file by a PNG, JPEG or WebP image." in str(error)


def test_too_small(tmp_path: Path) -> None:
    path = tmp_path / "stamp.png"
    path.write_bytes(encoded((400, 31)))
    error = refused(path)
    assert error.code == "PHOTO_TOO_SMALL"
    assert error.message == "'stamp.png' has 400x31 pixels; its shorter side needs 32."


@pytest.mark.parametrize("side", [6_400, 12_000, 20_000])  # ours, Pillow's warning, its error
def test_a_bomb_of_pixels_is_not_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_claimed_size(side, side))
    error = refused(path)
    assert error.code == "PHOTO_TOO_LARGE"
    assert "'bomb.png'" in error.message
    assert "pixels" in error.message


def test_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "raw.png"
    with path.open("wb") as file:
        file.truncate(MAX_PHOTO_BYTES + 1)
    error = refused(path)
    assert error.code == "PHOTO_TOO_LARGE"
    assert "bytes" in error.message


def test_a_file_name_cannot_write_lines_into_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a\nstep=1 loss=0.png"
    path.write_bytes(b"x")
    assert "\n" not in refused(path).message


def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    """Mutates files of each format: no exception but LimnerError may leave the module."""
    draw = random.Random(7)
    path = tmp_path / "mutant"
    outcomes = {"read": 0, "refused": 0}
    exif = Image.Exif()
    exif[0x0112] = 8
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded((48, 40), kind, exif=exif.tobytes())
        for _ in range(400):
            mutant = bytearray(whole)
            for _ in range(draw.choice((1, 2, 8))):
                mutant[draw.randrange(len(mutant))] = draw.randrange(256)
            if draw.random() < 0.2:
                del mutant[draw.randrange(len(mutant)) :]
            path.write_bytes(mutant)
            try:
                load_photo(path, keep_side_px=64)
                outcomes["read"] += 1
            except LimnerError as error:
                assert error.code.startswith("PHOTO_")
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.parametrize(
    ("count", "code"), [(0, "TOO_FEW_PHOTOS"), (2, "TOO_FEW_PHOTOS"), (51, "TOO_MANY_PHOTOS")]
)
def test_the_number_of_photos(tmp_path: Path, count: int, code: str) -> None:
    for index in range(count):
        (tmp_path / f"{index}.png").write_bytes(b"counted before any is read")
    with pytest.raises(LimnerError, match=f"There are {count} photos") as caught:
        load_photos(tmp_path, keep_side_px=64)
    assert caught.value.code == code


def test_photos_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, side in (("b.png", 41), ("c.png", 42), ("a.png", 40)):
        (tmp_path / name).write_bytes(encoded((side, side)))
    sizes = [image.size[0] for image in load_photos(tmp_path, keep_side_px=64)]
    assert sizes == [40, 41, 42]
    assert len(sizes) < MAX_PHOTOS
