"""Answers: what a shell sends for a generation, in each of the formats that may be asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from PIL import Image

from inference.engine.denoise import Pixels
from inference.engine.engine import Generation
from limner.contracts.errors import LimnerError
from limner.contracts.generation import (
    MAX_BODY_BYTES,
    GeneratedImage,
    GenerateResponse,
    ImageFormat,
)

# Above Pillow's own default (75 and 80), which shows on flat backgrounds.
_QUALITY: Final = 90


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent, and the image files that are in it.

    Attributes:
        content: The body.
        files: The file of each image.
        image_format: Of the files.
    """

    content: bytes
    files: tuple[bytes, ...]
    image_format: ImageFormat


def as_json(generation: Generation, image_format: ImageFormat) -> Answer:
    """A ``GenerateResponse`` with all images.

    Raises:
        LimnerError: ``INVALID_INPUT``, if the platform would refuse its size.
    """
    files = tuple(encoded(pixels, image_format) for pixels in generation.pixels)
    images = [
        GeneratedImage.of(file, image_format, seed)
        for file, seed in zip(files, generation.seeds, strict=True)
    ]
    response = GenerateResponse(
        images=images,
        prompt=generation.prompt,
        base_id=generation.base_id,
        adapter_sha256=generation.adapter_sha256,
        denoise_ms=generation.denoise_ms,
    )
    content = _bounded(response.model_dump_json(exclude_none=True).encode())
    return Answer(content, files, image_format)


def as_image(generation: Generation, image_format: ImageFormat) -> Answer:
    """The first image as a file.

    Raises:
        LimnerError: ``INVALID_INPUT``, if the platform would refuse its size.
    """
    file = _bounded(encoded(generation.pixels[0], image_format))
    return Answer(file, (file,), image_format)


def encoded(pixels: Pixels, image_format: ImageFormat) -> bytes:
    """An image file of ``[height, width, 3]``; PNG keeps every pixel, the others are smaller."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, image_format.upper(), quality=_QUALITY)
    return buffer.getvalue()


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_BODY_BYTES:
        raise LimnerError(
            "INVALID_INPUT",
            f"The answer exceeds {MAX_BODY_BYTES} bytes: ask for fewer images, or for jpeg.",
        )
    return content
