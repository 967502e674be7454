"""What both shells answer: a ``GenerateResponse`` with the images, or one image as a PNG."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from inference.engine.denoise import Pixels
from inference.engine.engine import Generation
from limner.contracts.errors import LimnerError
from limner.contracts.generation import (
    JSON_TYPE,
    MAX_BODY_BYTES,
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
)

PNG_TYPE: Final = "image/png"


def answer_type(accept: str, request: GenerateRequest) -> str:
    """The media type to answer a request with.

    Args:
        accept: What the caller would like; anything but a PNG is answered by JSON.
        request: What is asked for.

    Raises:
        LimnerError: ``INVALID_INPUT``, if a PNG is asked to carry several images.
    """
    if accept.split(";")[0].strip() != PNG_TYPE:
        return JSON_TYPE
    if request.images != 1:
        raise LimnerError("INVALID_INPUT", f"{PNG_TYPE} can carry one image only.")
    return PNG_TYPE


def encode_answer(generation: Generation, media_type: str) -> bytes:
    """The body of an answer; takes some milliseconds for each image.

    Raises:
        LimnerError: ``INVALID_INPUT``, if it is more than InvokeEndpoint carries.
    """
    content = _png(generation.pixels[0]) if media_type == PNG_TYPE else _json(generation)
    if len(content) > MAX_BODY_BYTES:
        raise LimnerError(
            "INVALID_INPUT", f"The answer exceeds {MAX_BODY_BYTES} bytes: ask fewer images."
        )
    return content


def _json(generation: Generation) -> bytes:
    images = [
        GeneratedImage(png_base64=base64.b64encode(_png(pixels)).decode(), seed=seed)
        for pixels, seed in zip(generation.pixels, generation.seeds, strict=True)
    ]
    response = GenerateResponse(
        images=images,
        prompt=generation.prompt,
        base_id=generation.base_id,
        adapter_sha256=generation.adapter_sha256,
        denoise_ms=generation.denoise_ms,
    )
    return response.model_dump_json().encode()


def _png(pixels: Pixels) -> bytes:
    """A PNG of ``[height, width, 3]``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
