"""A generation: the body of InvokeEndpoint and its answer."""

from __future__ import annotations

import base64
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

JSON_TYPE: Final = "application/json"
# The platform names a request's model to its container (developer guide, custom containers).
TARGET_HEADER: Final = "X-Amzn-SageMaker-Target-Model"
# InvokeEndpoint refuses larger bodies (SageMaker runtime API model).
MAX_BODY_BYTES: Final = 6_291_456

ImageFormat = Literal["png", "jpeg", "webp"]
# Types of an ``Accept`` header that ask for one image instead of JSON.
IMAGE_TYPES: Final[dict[str, ImageFormat]] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
}


class GenerateRequest(BaseModel):
    """What to draw.

    Attributes:
        prompt: The text; ``{token}`` stands for the user's subject and is filled in from the
            adapter's manifest.
        negative_prompt: What to keep away from.
        steps: Denoising steps; a base whose scheduler is PNDM takes one more.
        guidance: Scale of classifier-free guidance; 1 or less turns it off.
        seed: Seed of the first image; image i uses seed + i.
        images: Number of images.
        height: Pixels; the base's own size where absent. A multiple of 8.
        width: Pixels; the base's own size where absent. A multiple of 8.
        format: Of the answer's images. PNG keeps every pixel; the others are smaller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=400)]
    negative_prompt: Annotated[str, StringConstraints(max_length=400)] = ""
    steps: int = Field(default=20, ge=1, le=100)
    guidance: float = Field(default=3.0, ge=0, le=20, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**31)
    images: int = Field(default=1, ge=1, le=8)
    height: int | None = Field(default=None, ge=32, le=1024, multiple_of=8)
    width: int | None = Field(default=None, ge=32, le=1024, multiple_of=8)
    format: ImageFormat = "png"


# What a prefetch asks for, to have a model loaded and to throw the image away. 64 pixels are 8
# latents of a Stable Diffusion base, the least that its three halvings leave one of: a 64th of the
# work of 512 pixels. The container knows it by this, so it is the same for all releases.
SMALLEST: Final = GenerateRequest(prompt="{token}", steps=1, guidance=0, height=64, width=64)


class GeneratedImage(BaseModel):
    """One image, in exactly one of the two fields.

    ``png_base64`` is older than the other formats. It stays: a client that knows of nothing else
    never asks for anything else.

    Attributes:
        seed: The seed that gives this image again.
        format: Of the image.
        png_base64: A PNG, base64.
        data_base64: An image of another format, base64.
    """

    seed: int
    format: ImageFormat = "png"
    png_base64: str | None = None
    data_base64: str | None = None

    @model_validator(mode="after")
    def _has_one_image(self) -> Self:
        fields = (self.png_base64 is not None, self.data_base64 is not None)
        if fields != (self.format == "png", self.format != "png"):
            raise ValueError("a PNG belongs in png_base64, anything else in data_base64")
        return self

    @classmethod
    def of(cls, content: bytes, image_format: ImageFormat, seed: int) -> Self:
        """An image from the bytes of its file."""
        text = base64.b64encode(content).decode()
        if image_format == "png":
            return cls(png_base64=text, seed=seed)
        return cls(format=image_format, data_base64=text, seed=seed)

    @property
    def content(self) -> bytes:
        """The bytes of the image's file.

        Raises:
            ValueError: If it is not base64.
        """
        return base64.b64decode(self.png_base64 or self.data_base64 or "", validate=True)


class GenerateResponse(BaseModel):
    """The answer.

    Attributes:
        images: In the order of their seeds.
        prompt: The prompt as it was drawn, with the token filled in.
        base_id: The base under the adapter.
        adapter_sha256: Which adapter drew; the manifest's hash.
        denoise_ms: Milliseconds in the denoising loop and the decoder; whoever shared the passes
            has the same ones.
    """

    schema_version: Literal[1] = 1
    images: list[GeneratedImage]
    prompt: str
    base_id: str
    adapter_sha256: str
    denoise_ms: float
