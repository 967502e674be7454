"""Capture by the container: what it answers is written behind everybody's back.

The container knows its models by SageMaker's hash of their artifacts. Whose a model is, only the
header ``X-Amzn-SageMaker-Target-Model`` tells (the Triton shell hands it on as the model's name).
Without one in our grammar nothing is captured: a generation that nobody can find by its user is one
that nobody can delete with its user. Nor is a prefetch, which draws in order to load.
"""

from __future__ import annotations

import threading
from typing import Final, Literal

from inference import metrics
from inference.answers import Answer
from inference.engine.engine import Generation
from inference.logs import log
from limner.capture import Counts, Put, Writer, put_to
from limner.contracts import keys
from limner.contracts.capture import CapturedGeneration
from limner.contracts.generation import SMALLEST, GenerateRequest
from limner.contracts.times import utc_now

# Of SageMaker's 30 s between SIGTERM and SIGKILL; requests get 18 or 20.
FLUSH_S: Final = 5.0

Fate = Literal["taken", "dropped", "unnamed", "prefetch"]
"""What became of one generation, for the log."""


class Capture:
    """The captured generations of one container; safe to use from any thread.

    Args:
        put: Writes one object.
        base_id: The base, the dimension of the metrics.
    """

    def __init__(self, put: Put, base_id: str) -> None:
        self._writer = Writer(put)
        self._base_id = base_id
        # Guards both figures: news must be told once. Never held while anything is written to S3.
        self._telling = threading.Lock()
        self._unnamed = 0
        self._told: dict[str, int] = {}

    def offer(
        self, target: str | None, request: GenerateRequest, generation: Generation, answer: Answer
    ) -> Fate:
        """Takes an answer to be written, or drops it; returns at once.

        Args:
            target: The TargetModel that the platform has named.
            request: What was asked for.
            generation: What was drawn.
            answer: What is sent; its files are written as they are.
        """
        if request == SMALLEST:
            return "prefetch"
        whose = keys.parts_of_target_model(target or "")
        if whose is None:
            with self._telling:
                self._unnamed += 1
            fate: Fate = "unnamed"
        else:
            user_id, model_id, version = whose
            record = CapturedGeneration(
                generation_id=keys.new_request_id(),
                captured_by="endpoint",
                user_id=user_id,
                model_id=model_id,
                version=version,
                captured_at=utc_now(),
                request=request,
                prompt=generation.prompt,
                base_id=generation.base_id,
                adapter_sha256=generation.adapter_sha256,
                denoise_ms=generation.denoise_ms,
            )
            files = record.files(answer.files, answer.image_format)
            fate = "taken" if self._writer.offer(files) else "dropped"
        self._tell()
        return fate

    def close(self) -> None:
        """Gives what was taken its time to be written, and tells the figures of all."""
        counts = self._writer.close(FLUSH_S)
        log("captured", {**self._tell(), "reason": counts.reason})

    def _tell(self) -> dict[str, int]:
        """Writes a line of metrics, if there is news: their sum is that of all generations."""
        with self._telling:
            figures = self._figures(self._writer.counts)
            news = {name: figure - self._told.get(name, 0) for name, figure in figures.items()}
            self._told = figures
        if any(news.values()):
            metrics.record(self._base_id, None, news)
        return figures

    def _figures(self, counts: Counts) -> dict[str, int]:
        return {
            metrics.CAPTURES_WRITTEN: counts.written,
            metrics.CAPTURES_DROPPED: counts.dropped,
            metrics.CAPTURES_FAILED: counts.failed,
            metrics.CAPTURES_UNNAMED: self._unnamed,
        }


def open_capture(bucket: str, base_id: str) -> Capture:
    """Capture to a bucket.

    Args:
        bucket: The bucket.
        base_id: The base that draws.
    """
    import boto3  # a container that captures nothing needs no AWS
    from botocore.config import Config

    # A put that gets no answer ends after 20 s or so: the next ones wait in memory meanwhile.
    config = Config(
        connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3}
    )
    return Capture(put_to(boto3.client("s3", config=config), bucket), base_id)
