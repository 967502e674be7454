"""What came of each task of a batch. Pure.

::

    planned ──> trained (artifact and result agree) | missing
            ──> failed (the task's own error, or nobody wants it any more)

``missing`` is whatever cannot be relied upon: no result, a result of another request, an artifact
that is not there or has another hash. It carries the error that the request ends with when it
cannot be tried again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lambdas.record_failure.logic import explain
from limner.contracts.errors import REGISTRY
from limner.contracts.outcomes import FAILED, MISSING, TRAINED, failure
from limner.contracts.packing import PastRun

# A result holds a dozen figures and perhaps an error of 1,000 characters.
MAX_RESULT_BYTES: Final = 65_536
# S3 copies at most 5 GB in one call (CopyObject).
MAX_ARTIFACT_BYTES: Final = 5 * 1024**3
# Larger archives are not read here: the endpoint compares the adapter with its manifest anyway.
MAX_HASHED_BYTES: Final = 128 * 1024**2
# No fine-tune has more of any of these, whatever a result says.
_MOST_STEPS: Final = 100_000
_MOST_PHOTOS: Final = 10_000
_LONGEST_S: Final = 5 * 86_400
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# The job was made and has ended, whatever else the error says.
_ABOUT_THE_JOB: Final = frozenset({"TRAINING_FAILED", "TRAINING_STOPPED", "DEADLINE_EXCEEDED"})

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """The part of ``result.json`` that matters here.

    Attributes:
        trained: Whether there is an artifact.
        artifact_sha256: Its hash.
        code: Why the task failed.
        message: The case at hand.
        run: What the fine-tune took, for the next plan; None if the result does not tell.
    """

    trained: bool
    artifact_sha256: str = ""
    code: str = ""
    message: str = ""
    run: PastRun | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A request whose task has ended.

    Attributes:
        item: The item as it is to go on.
        prefix: ``keys.batch_prefix`` of the attempt that has ended it.
        run: What the fine-tune took; None if it failed, or its result does not tell.
    """

    item: dict[str, Any]
    prefix: str
    run: PastRun | None = None


def read_result(request_id: str, body: bytes | None) -> Result | None:
    """Reads ``result.json``; None if it is not there, or not to be relied upon.

    Args:
        request_id: The request whose folder it lies in.
        body: At most ``MAX_RESULT_BYTES`` + 1 of it; None if there is none.
    """
    if body is None or len(body) > MAX_RESULT_BYTES:
        return None
    try:
        document = json.loads(body)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("request_id") != request_id:
        return None
    match document:
        case {"status": "trained", "artifact_sha256": str(digest)} if _SHA256.fullmatch(digest):
            return Result(trained=True, artifact_sha256=digest, run=_run(document.get("metrics")))
        case {"status": "failed", "error": {"code": str(code), "message": str(message)}}:
            known = code if code in REGISTRY else "TRAINING_FAILED"
            told = message if code in REGISTRY else f"{code}: {message}"
            return Result(trained=False, code=known, message=told)
        case _:
            return None


def _run(metrics: object) -> PastRun | None:
    """What a fine-tune took, if it can be true: one wrong figure would spoil all later plans."""
    match metrics:
        case {
            "steps": int() | float() as steps,
            "photos": int() | float() as photos,
            "share_seconds": int() | float() as seconds,
        } if all(map(math.isfinite, (steps, photos, seconds))):
            is_likely = (
                1 <= steps <= _MOST_STEPS
                and 1 <= photos <= _MOST_PHOTOS
                and 0 < seconds <= _LONGEST_S
            )
            return PastRun(round(steps), round(photos), seconds) if is_likely else None
        case _:
            return None


def is_sound(size: int | None, digest: str | None, result: Result) -> bool:
    """Whether an artifact is the one that the result speaks of.

    Args:
        size: Its size in bytes; None if there is no artifact.
        digest: Its SHA-256; None if it is too large to be read here.
        result: The task's result.
    """
    if not size or size > MAX_ARTIFACT_BYTES:
        return False
    return digest is None or digest == result.artifact_sha256


def trained(item: Item, source: str) -> dict[str, Any]:
    """The item of a request whose artifact lies at ``source``."""
    return {**item, "outcome": TRAINED, "source": source}


def failed(item: Item, result: Result) -> dict[str, Any]:
    """The item of a request whose task failed by itself."""
    return {**item, "outcome": FAILED, "error": failure(result.code, result.message)}


def cancelled(item: Item) -> dict[str, Any]:
    """The item of a request whose part was not done, and that its client has cancelled."""
    stopped = REGISTRY["EXECUTION_STOPPED"]
    return {**item, "outcome": FAILED, "error": failure(stopped.code, stopped.summary)}


def missing(item: Item, error: Mapping[str, str]) -> dict[str, Any]:
    """The item of a request whose part of the job was not done."""
    return {**item, "outcome": MISSING, "error": error}


def error_of_missing(job_name: str, cause: Mapping[str, Any]) -> dict[str, str]:
    """What a request ends with whose part was not done, and that cannot be tried again.

    Args:
        job_name: The job of this attempt.
        cause: ``Error`` and ``Cause`` of what kept the batch from its job, or ended the job;
            both are empty if the job has completed.
    """
    if not cause.get("Error"):
        return failure(
            "JOB_INCOMPLETE", f"The job {job_name} completed without this request's part."
        )
    reason = explain(cause["Error"], cause.get("Cause"))
    if cause["Error"] == "States.TaskFailed" or reason.code in _ABOUT_THE_JOB:
        if reason.code == "NO_CAPACITY":
            return failure(reason.code, reason.message)
        told = f"The job {job_name} ended before this request's part: {reason.message}"
        return failure("JOB_INCOMPLETE", told)
    return failure(reason.code, reason.message)
