"""Generating images: one InvokeEndpoint, with the retries that a cold model needs."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError
from pydantic import ValidationError

from limner.client.errors import code_of, translate
from limner.client.polling import Clock
from limner.contracts import triton
from limner.contracts.errors import LimnerError
from limner.contracts.generation import (
    JSON_TYPE,
    MAX_BODY_BYTES,
    GenerateRequest,
    GenerateResponse,
    ImageFormat,
)

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

# Loading a model may take up to 360 s (SageMaker developer guide, "Multi-model endpoints").
LOADING_DEADLINE_S: Final = 360.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
# The modelled errors of InvokeEndpoint that pass by themselves, and throttling. A ModelError is
# the container's own answer and is not repeated, unless it says that its queue is full.
_PASSING: Final = frozenset(
    {
        "ModelNotReadyException",
        "ThrottlingException",
        "ServiceUnavailable",
        "InternalDependencyException",
    }
)


@dataclass(frozen=True, slots=True)
class Image:
    """One generated image.

    Attributes:
        content: The file's bytes.
        seed: The seed that gives it again.
        format: What kind of file it is.
    """

    content: bytes
    seed: int
    format: ImageFormat = "png"

    def save(self, path: Path | str) -> Path:
        """Writes the file, makes the folders above it, and returns the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.content)
        return target


@dataclass(frozen=True, slots=True)
class Generation:
    """What the endpoint drew.

    Attributes:
        images: In the order of their seeds.
        user_id: Whose model drew.
        model_id: Which one.
        version: Which version of it.
        target_model: What the endpoint calls that version.
        prompt: The prompt as it was drawn, with the token filled in.
        base_id: The base under the adapter.
        adapter_sha256: Which adapter drew.
        denoise_ms: Milliseconds that the endpoint spent drawing.
    """

    images: tuple[Image, ...]
    user_id: str
    model_id: str
    version: int
    target_model: str
    prompt: str
    base_id: str
    adapter_sha256: str
    denoise_ms: float

    def save(self, folder: Path | str) -> list[Path]:
        """Writes all images as ``<user>-<model>-v<version>-<prompt's hash>-s<seed>.<format>``."""
        words = hashlib.sha256(self.prompt.encode()).hexdigest()[:6]
        stem = f"{self.user_id}-{self.model_id}-v{self.version}-{words}"
        return [
            image.save(Path(folder) / f"{stem}-s{image.seed}.{image.format}")
            for image in self.images
        ]


def invoke(
    runtime: SageMakerRuntimeClient,
    endpoint_name: str,
    target_model: str,
    request: GenerateRequest,
    *,
    deadline_s: float,
    clock: Clock,
) -> GenerateResponse:
    """Asks one model of the endpoint, again and again while it is loading or busy.

    Args:
        runtime: A client without retries of its own.
        endpoint_name: The multi-model endpoint.
        target_model: Computed from the registry, never by the caller's caller.
        request: What to draw.
        deadline_s: Seconds after which no new try begins.
        clock: Time.

    Raises:
        LimnerError: ``MODEL_LOADING``, ``ENDPOINT_BUSY``, ``THROTTLED`` or ``GENERATION_FAILED``
            at the deadline; what else the container says, at once.
    """
    # Only what differs from the defaults: an endpoint of last year knows no fields of this year.
    body = request.model_dump_json(exclude_defaults=True).encode()
    deadline = clock.monotonic() + deadline_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            answer = runtime.invoke_endpoint(
                EndpointName=endpoint_name,
                TargetModel=target_model,
                # Both shells take the body as it is under this type.
                ContentType=triton.RAW_TYPE,
                Accept=JSON_TYPE,
                Body=body,
            )
            content = answer["Body"].read(MAX_BODY_BYTES + 1)
            return _parse(triton.unwrap(content, answer.get("ContentType", "")))
        except ReadTimeoutError as error:
            raise LimnerError(
                "GENERATION_FAILED", "The endpoint did not answer in time."
            ) from error
        except BotoCoreError as error:
            raise translate(error) from error
        except ClientError as error:
            # The full-jitter wait keeps clients that met the same cold model from coming back at
            # the same moment.
            wait_s = random.uniform(_FIRST_PAUSE_S / 2, pause_s)  # noqa: S311 - not a secret
            failure = translate(error)
            passes = code_of(error) in _PASSING or failure.code == "ENDPOINT_BUSY"
            if not passes or clock.monotonic() + wait_s > deadline:
                raise failure from error
        clock.sleep(wait_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def images_of(response: GenerateResponse) -> tuple[Image, ...]:
    """The decoded images of an answer.

    Raises:
        LimnerError: ``GENERATION_FAILED``, if one is not base64.
    """
    try:
        return tuple(Image(image.content, image.seed, image.format) for image in response.images)
    except ValueError as error:
        raise LimnerError("GENERATION_FAILED", "The endpoint sent a broken image.") from error


def _parse(body: bytes) -> GenerateResponse:
    try:
        return GenerateResponse.model_validate_json(body)
    except ValidationError as error:
        detail = "The endpoint's answer does not have the agreed form."
        raise LimnerError("GENERATION_FAILED", detail) from error
