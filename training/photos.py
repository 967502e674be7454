"""Which files are good photos, and their pixels.

Files come from strangers. A file is judged by its number of bytes, then by its header, and only
then decoded, by Pillow's decoders of three formats and no others. Every refusal names the file,
the reason and (through the error registry) the fix.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from limner.contracts.base import BaseCard
from limner.contracts.errors import LimnerError
from limner.contracts.limits import (
    MAX_PHOTO_BYTES,
    MAX_PHOTO_PIXELS,
    MAX_PHOTOS,
    MIN_PHOTO_SIDE_PX,
    MIN_PHOTOS,
)

FORMATS: Final = ("PNG", "JPEG", "WEBP")

# What Pillow's decoders of the formats above raise on damaged files (found by mutating files, see
# tests/unit/training/test_photos.py): OSError covers "cannot identify" and "truncated".
_DAMAGED: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error)

# Squares of pixels are averaged until a photo is this many times as large as it is kept; the rest
# is done by a better filter.
_REDUCING_GAP: Final = 2
_STRIP_ROWS: Final = 8
# Photos are kept at this multiple of the base's resolution: enough for every crop to be scaled
# down, little enough for fifty of them to fit into memory.
_KEEP_SCALE: Final = 2
# Where Pillow finds the EXIF orientation of an image.
_ORIENTATION: Final = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def keep_side_px(card: BaseCard) -> int:
    """The shorter side that photos for this base are kept with."""
    return _KEEP_SCALE * card.resolution_px


def _refusal(code: str, path: Path, reason: str) -> LimnerError:
    # repr keeps control characters of a hostile file name out of logs and records.
    return LimnerError(code, f"{path.name[-80:]!r} {reason}.")


def load_photo(path: Path, *, keep_side_px: int) -> Image.Image:
    """Checks and decodes one photo.

    Args:
        path: The file.
        keep_side_px: The shorter side is scaled down to this many pixels, if it is longer: fifty
            photos of forty megapixels must fit into memory.

    Returns:
        An RGB image, upright (EXIF orientation applied), transparency laid on white.

    Raises:
        LimnerError: ``PHOTO_TOO_LARGE``, ``PHOTO_NOT_AN_IMAGE`` or ``PHOTO_TOO_SMALL``.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_PHOTO_BYTES:
        raise _refusal(
            "PHOTO_TOO_LARGE", path, f"has {size_bytes} bytes; at most {MAX_PHOTO_BYTES} are taken"
        )
    with warnings.catch_warnings():
        # Pillow grumbles about oddities that it can live with, such as damaged EXIF data; it only
        # warns of a bomb up to twice its limit, which is an error for us.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _opened(path) as image:
            _check_size(path, *image.size)
            try:
                return _upright_rgb(image, keep_side_px)
            except _DAMAGED as error:
                raise _refusal("PHOTO_NOT_AN_IMAGE", path, "is damaged or cut off") from error


def _opened(path: Path) -> Image.Image:
    """Reads the header alone; the pixels are decoded on first use."""
    try:
        return Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _refusal(
            "PHOTO_TOO_LARGE", path, f"has more pixels than the {MAX_PHOTO_PIXELS} that are taken"
        ) from error
    except _DAMAGED as error:
        raise _refusal("PHOTO_NOT_AN_IMAGE", path, "is not a PNG, JPEG or WebP image") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PHOTO_PIXELS:
        raise _refusal(
            "PHOTO_TOO_LARGE",
            path,
            f"has {width}x{height} pixels; at most {MAX_PHOTO_PIXELS} are taken",
        )
    if min(width, height) < MIN_PHOTO_SIDE_PX:
        raise _refusal(
            "PHOTO_TOO_SMALL",
            path,
            f"has {width}x{height} pixels; its shorter side needs {MIN_PHOTO_SIDE_PX}",
        )


def _upright_rgb(image: Image.Image, keep_side_px: int) -> Image.Image:
    """Decodes; the pixels of a large photo are in memory once, and in no second full copy."""
    scale = max(1.0, min(image.size) / keep_side_px)
    # For JPEG: let the decoder itself skip pixels that would be scaled away; no-op for others.
    image.draft("RGB", (round(image.width / scale), round(image.height / scale)))
    image.load()
    scale = max(1.0, min(image.size) / keep_side_px)
    factor = max(1, int(scale / _REDUCING_GAP))
    rgb = _flat(image, factor)
    if scale > 1.0:
        size = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
        # The last row and column of averages may stand for less than a whole square.
        whole = (0.0, 0.0, image.width / factor, image.height / factor)
        rgb = rgb.resize(size, Image.Resampling.LANCZOS, box=whole)
    rgb.info = {name: image.info[name] for name in _ORIENTATION if name in image.info}
    return ImageOps.exif_transpose(rgb)


def _flat(image: Image.Image, factor: int) -> Image.Image:
    """The image as RGB, transparency laid on white, each square of ``factor`` pixels averaged.

    It is made in strips: a copy in another mode takes as much memory as the photo itself.
    """
    transparent = image.has_transparency_data
    if image.mode == "RGB" and factor == 1 and not transparent:
        return image
    flat = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, _STRIP_ROWS * factor):
        bottom = min(top + _STRIP_ROWS * factor, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if transparent:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        flat.paste(strip.convert("RGB").reduce(factor), (0, top // factor))
    return flat


def load_photos(folder: Path, *, keep_side_px: int) -> list[Image.Image]:
    """Checks and decodes all photos of a folder, in the order of their names.

    Every regular file counts as a photo: a file that is none is an error, not passed over, so
    that nobody wonders why a model has never seen a picture.

    Args:
        folder: The channel; sub-folders are searched too.
        keep_side_px: See ``load_photo``.

    Raises:
        LimnerError: ``TOO_FEW_PHOTOS``, ``TOO_MANY_PHOTOS``, or what ``load_photo`` raises.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if len(paths) < MIN_PHOTOS:
        raise LimnerError(
            "TOO_FEW_PHOTOS", f"There are {len(paths)} photos; at least {MIN_PHOTOS} are needed."
        )
    if len(paths) > MAX_PHOTOS:
        raise LimnerError(
            "TOO_MANY_PHOTOS", f"There are {len(paths)} photos; at most {MAX_PHOTOS} are taken."
        )
    return [load_photo(path, keep_side_px=keep_side_px) for path in paths]
