"""Whether an artifact may be published, by what its manifest says. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

from limner.contracts.errors import LimnerError

# Of limner.contracts.artifact.Manifest; that needs pydantic, and a test compares.
SCHEMA_VERSION: Final = 1
# What the figures are is written at training.quality.Figures.
WORDS: Final = {
    "similarity_gain": "its images are no more like the photos than the base's",
    "prompt_response": "its images do not follow the prompt",
    "diversity": "its images are all alike",
    "novelty": "its images are copies of the photos",
}


def judge(
    manifest: bytes, request_id: str, base_id: str, least: Mapping[str, float]
) -> dict[str, float]:
    """The figures of an artifact that may be published.

    Args:
        manifest: ``manifest.json``.
        request_id: The request that the artifact must be for.
        base_id: The base that it must be for.
        least: What figures must reach, by name. One that is not there has not reached it.

    Raises:
        LimnerError: ``ARTIFACT_INVALID``, ``ARTIFACT_WRONG_BASE`` or ``QUALITY_TOO_LOW``.
    """
    document = _document(manifest)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise LimnerError("ARTIFACT_INVALID", "The manifest is of a version not known here.")
    if document.get("request_id") != request_id:
        raise LimnerError("ARTIFACT_INVALID", "The manifest speaks of another request.")
    if document.get("base_id") != base_id:
        raise LimnerError("ARTIFACT_WRONG_BASE")
    metrics = _figures(document.get("metrics"))
    if reasons := [
        f"{WORDS[name]} ({name} is {_told(metrics.get(name))}, at least {bound:g} is asked)"
        for name, bound in sorted(least.items())
        if not metrics.get(name, -math.inf) >= bound
    ]:
        raise LimnerError("QUALITY_TOO_LOW", f"The new model is not good: {'; '.join(reasons)}.")
    return metrics


def _document(manifest: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(manifest)
    except ValueError as error:
        raise LimnerError("ARTIFACT_INVALID", "The manifest is no JSON.") from error
    if not isinstance(document, dict):
        raise LimnerError("ARTIFACT_INVALID", "The manifest is no JSON object.")
    return document


def _figures(metrics: object) -> dict[str, float]:
    if not isinstance(metrics, dict) or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in metrics.values()
    ):
        raise LimnerError("ARTIFACT_INVALID", "The manifest's metrics are no figures.")
    return metrics


def _told(value: float | None) -> str:
    return "missing" if value is None else f"{value:g}"
