"""A generation: the body of InvokeEndpoint and its answer."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

JSON_TYPE: Final = "application/json"
# InvokeEndpoint refuses larger bodies (SageMaker runtime API model).
MAX_BODY_BYTES: Final = 6_291_456


class GenerateRequest(BaseModel):
    """What to draw.

    Attributes:
        prompt: The text; ``{token}`` stands for the user's subject and is filled in from the
            adapter's manifest.
        negative_prompt: What to keep away from.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; 1 or less turns it off.
        seed: Seed of the first image; image i uses seed + i.
        images: Number of images.
        height: Pixels; the base's own size where absent. A multiple of 8.
        width: Pixels; the base's own size where absent. A multiple of 8.
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


class GeneratedImage(BaseModel):
    """One image.

    Attributes:
        png_base64: A PNG, base64.
        seed: The seed that gives this image again.
    """

    png_base64: str
    seed: int


class GenerateResponse(BaseModel):
    """The answer.

    Attributes:
        images: In the order of their seeds.
        prompt: The prompt as it was drawn, with the token filled in.
        base_id: The base under the adapter.
        adapter_sha256: Which adapter drew; the manifest's hash.
        denoise_ms: Milliseconds in the denoising loop and the decoder.
    """

    schema_version: Literal[1] = 1
    images: list[GeneratedImage]
    prompt: str
    base_id: str
    adapter_sha256: str
    denoise_ms: float
