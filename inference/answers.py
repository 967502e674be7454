"""Answers: what both shells send for a generation, in each of the forms that may be asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from PIL import Image

from inference.engine.denoise import Pixels
from inference.engine.engine import Generation
from limner.contracts.errors import LimnerError
from limner.contracts.generation import (
    IMAGE_TYPES,
    JSON_TYPE,
    MAX_BODY_BYTES,
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    ImageFormat,
)

# Above Pillow's own default (75 and 80), which shows on flat backgrounds.
_QUALITY: Final = 90


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer looks like.

    Attributes:
        media_type: JSON with all images, or one image as a file.
        image_format: Of the images, in either.
    """

    media_type: str
    image_format: ImageFormat

    @classmethod
    def of(cls, accept: str, request: GenerateRequest) -> Form:
        """The form to answer a request in.

        Args:
            accept: What the caller would like; anything but the type of an image is answered by
                JSON.
            request: What is asked for.

        Raises:
            LimnerError: ``INVALID_INPUT``, if an image is asked to carry several.
        """
        accepted = accept.split(";")[0].strip()
        image_format = IMAGE_TYPES.get(accepted)
        if image_format is None:
            return cls(JSON_TYPE, request.format)
        if request.images != 1:
            raise LimnerError("INVALID_INPUT", f"{accepted} can carry one image only.")
        return cls(accepted, image_format)


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


def encode_answer(generation: Generation, form: Form) -> Answer:
    """An answer; takes some milliseconds for each image.

    Raises:
        LimnerError: ``INVALID_INPUT``, if it is more than InvokeEndpoint carries.
    """
    files = tuple(_encoded(pixels, form.image_format) for pixels in generation.pixels)
    content = _json(generation, files, form) if form.media_type == JSON_TYPE else files[0]
    if len(content) > MAX_BODY_BYTES:
        raise LimnerError(
            "INVALID_INPUT",
            f"The answer exceeds {MAX_BODY_BYTES} bytes: ask for fewer images, or for jpeg.",
        )
    return Answer(content, files, form.image_format)


def _json(generation: Generation, files: tuple[bytes, ...], form: Form) -> bytes:
    images = [
        GeneratedImage.of(file, form.image_format, seed)
        for file, seed in zip(files, generation.seeds, strict=True)
    ]
    response = GenerateResponse(
        images=images,
        prompt=generation.prompt,
        base_id=generation.base_id,
        adapter_sha256=generation.adapter_sha256,
        denoise_ms=generation.denoise_ms,
    )
    return response.model_dump_json(exclude_none=True).encode()


def _encoded(pixels: Pixels, image_format: ImageFormat) -> bytes:
    """An image file of ``[height, width, 3]``; PNG keeps every pixel, the others are smaller."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, image_format.upper(), quality=_QUALITY)
    return buffer.getvalue()
