"""A captured generation: what was asked for and what was drawn, as objects of the bucket.

::

    generations/<user>/<date>/<id>/image-00.png   each image, as it was answered
    generations/<user>/<date>/<id>/request.json   CapturedGeneration, written last

Where there is a ``request.json``, its images are there, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from limner.contracts import keys
from limner.contracts.generation import IMAGE_TYPES, JSON_TYPE, GenerateRequest, ImageFormat

CaptureBy = Literal["off", "endpoint", "client"]
"""Who captures: nobody, the endpoint's container, or the app's ``Limner``."""
RECORD_FILE: Final = "request.json"

_TYPE_OF: Final = {image_format: content_type for content_type, image_format in IMAGE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class CapturedFile:
    """One object to be written.

    Attributes:
        key: Where, in the bucket.
        content: Its bytes.
        content_type: Its type.
    """

    key: str
    content: bytes
    content_type: str


class CapturedGeneration(BaseModel):
    """The content of ``request.json``.

    Attributes:
        generation_id: Which generation; the last part of its prefix.
        captured_by: Who wrote it.
        user_id: Whose model drew.
        model_id: Which of the user's models.
        version: Which version of it.
        captured_at: When the answer was there, as ``limner.contracts.times`` writes it.
        request: What was asked for.
        prompt: The prompt as it was drawn, with the token filled in.
        base_id: The base under the adapter.
        adapter_sha256: Which adapter drew.
        denoise_ms: Milliseconds in the denoising loop and the decoder.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    generation_id: str
    captured_by: Literal["endpoint", "client"]
    user_id: str
    model_id: str
    version: int
    captured_at: str
    request: GenerateRequest
    prompt: str
    base_id: str
    adapter_sha256: str
    denoise_ms: float

    @property
    def prefix(self) -> str:
        """What the keys of its files begin with."""
        return keys.generation_prefix(self.user_id, self.captured_at[:10], self.generation_id)

    def files(self, images: Sequence[bytes], image_format: ImageFormat) -> tuple[CapturedFile, ...]:
        """Everything to be written, in this order.

        Args:
            images: The files of the images, as they were answered.
            image_format: Their format; an ``Accept`` header may have asked for another one than
                the request.
        """
        drawn = (
            CapturedFile(
                f"{self.prefix}image-{number:02d}.{image_format}", image, _TYPE_OF[image_format]
            )
            for number, image in enumerate(images)
        )
        record = self.model_dump_json().encode()
        return (*drawn, CapturedFile(f"{self.prefix}{RECORD_FILE}", record, JSON_TYPE))
