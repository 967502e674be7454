"""What the first inference asks for, and what counts as a sound answer. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lambdas.smoke_test.png import Png, PngError
from limner.contracts.errors import REGISTRY, LimnerError

# Few steps: the test asks whether the model draws, not how well.
REQUEST: Final = {"prompt": "a photo of {token}", "steps": 4, "seed": 0, "images": 1}

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Errors of InvokeEndpoint that pass (SageMaker runtime API reference): the model is still being
# loaded, or the platform is busy.
_PASSING: Final = frozenset(
    {
        "ModelNotReadyException",
        "InternalDependencyException",
        "InternalFailure",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "ThrottlingException",
    }
)


class ModelNotReadyError(LimnerError):
    """The endpoint cannot answer yet. The machine's Retry knows this class by its name."""

    def __init__(self, detail: str) -> None:
        super().__init__("MODEL_LOADING", detail)


@dataclass(frozen=True, slots=True)
class Report:
    """What the first inference has shown.

    Attributes:
        adapter_sha256: Which adapter drew.
        width: Pixels of the image.
        height: Pixels of the image.
        denoise_ms: Milliseconds in the denoising loop and the decoder.
    """

    adapter_sha256: str
    width: int
    height: int
    denoise_ms: float


def refusal(code: str, message: str, container_body: str) -> LimnerError:
    """The error of a call that InvokeEndpoint refused.

    Args:
        code: AWS's error code.
        message: AWS's message.
        container_body: What the container answered, where it did (``OriginalMessage``).
    """
    if code in _PASSING:
        return ModelNotReadyError(f"{code}: {message}")
    answer = _json_object(container_body).get("error")
    if isinstance(answer, Mapping) and (spec := REGISTRY.get(str(answer.get("code")))):
        detail = str(answer.get("message") or spec.summary)
        return ModelNotReadyError(detail) if spec.retryable else LimnerError(spec.code, detail)
    return LimnerError("SMOKE_TEST_FAILED", f"The endpoint refused the request: {code}: {message}")


def check_answer(body: bytes, base_id: str) -> Report:
    """Checks the answer to ``REQUEST``.

    Args:
        body: A ``GenerateResponse`` as JSON.
        base_id: The base that must have drawn.

    Raises:
        LimnerError: ``SMOKE_TEST_FAILED``, naming what is wrong; ``ARTIFACT_WRONG_BASE``.
    """
    answer = _json_object(body)
    if answer.get("base_id") != base_id:
        raise LimnerError(
            "ARTIFACT_WRONG_BASE", f"The endpoint drew on {answer.get('base_id')}, not {base_id}."
        )
    adapter = str(answer.get("adapter_sha256"))
    if not _SHA256.fullmatch(adapter):
        raise _failed("the answer does not name the adapter that drew")
    png = _image(answer)
    try:
        constant = png.is_constant()
    except PngError as error:
        raise _failed(str(error)) from error
    if constant:
        raise _failed("the image shows one colour only")
    return Report(adapter, png.width, png.height, float(answer.get("denoise_ms") or 0))


def _image(answer: Mapping[str, Any]) -> Png:
    images = answer.get("images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], Mapping):
        raise _failed("the answer does not hold one image")
    try:
        return Png.read(base64.b64decode(str(images[0].get("png_base64")), validate=True))
    except binascii.Error as error:
        raise _failed("the image is not base64") from error
    except PngError as error:
        raise _failed(str(error)) from error


def _failed(reason: str) -> LimnerError:
    return LimnerError("SMOKE_TEST_FAILED", f"The first inference failed: {reason}.")


def _json_object(text: str | bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
