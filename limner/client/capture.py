"""Capture by the client: what ``generate`` answered is written behind the caller's back."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Final

from limner.capture import Counts, Writer, put_to
from limner.client.generation import Generation
from limner.contracts import keys
from limner.contracts.capture import CapturedGeneration
from limner.contracts.generation import GenerateRequest
from limner.contracts.times import utc_now

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Well within the 10 s that Docker gives a program between SIGTERM and SIGKILL.
FLUSH_S: Final = 5.0


class Capture:
    """The captured generations of one ``Limner``.

    A program that ends without ``close`` flushes, too, if it ends in an orderly way; SIGTERM ends
    a Python program at once, unless somebody turns it into an exit, as servers do.

    Args:
        s3: A client with bounded retries and timeouts.
        bucket: The bucket.
    """

    def __init__(self, s3: S3Client, bucket: str) -> None:
        self._writer = Writer(put_to(s3, bucket))
        atexit.register(self._writer.close, FLUSH_S)

    @property
    def counts(self) -> Counts:
        """What became of the generations so far."""
        return self._writer.counts

    def offer(self, request: GenerateRequest, drawn: Generation) -> bool:
        """Takes an answer to be written, or drops it; returns at once.

        Args:
            request: What was asked for.
            drawn: What was answered.

        Returns:
            Whether it was taken.
        """
        record = CapturedGeneration(
            generation_id=keys.new_request_id(),
            captured_by="client",
            user_id=drawn.user_id,
            model_id=drawn.model_id,
            version=drawn.version,
            captured_at=utc_now(),
            request=request,
            prompt=drawn.prompt,
            base_id=drawn.base_id,
            adapter_sha256=drawn.adapter_sha256,
            denoise_ms=drawn.denoise_ms,
        )
        return self._writer.offer(
            record.files([image.content for image in drawn.images], request.format)
        )

    def close(self, deadline_s: float) -> None:
        """Waits for what was taken.

        Args:
            deadline_s: Seconds to wait; what is left then is dropped, and counted.
        """
        self._writer.close(deadline_s)
        atexit.unregister(self._writer.close)
