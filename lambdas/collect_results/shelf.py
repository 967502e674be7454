"""What the tasks of batches have left in the bucket: results, and the artifacts they speak of."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from lambdas.collect_results import logic
from lambdas.shared.log import log_event
from lambdas.shared.objects import get_object
from limner.contracts import keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK_BYTES: Final = 1024**2


class Shelf:
    """The bucket, as far as batches are concerned.

    Args:
        s3: A client of S3.
        bucket: The bucket.
        log: The function's log.
    """

    def __init__(self, s3: S3Client, bucket: str, log: logging.Logger) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._log = log

    def find(self, item: logic.Item, prefixes: Iterable[str]) -> logic.Ended | None:
        """How an item's task has ended; None if no attempt has ended it.

        Args:
            item: A planned request.
            prefixes: ``keys.batch_prefix`` of the attempts to look at, the newest first.
        """
        found = (self._look(item, prefix) for prefix in prefixes)
        return next((ended for ended in found if ended is not None), None)

    def _look(self, item: logic.Item, prefix: str) -> logic.Ended | None:
        folder = f"{prefix}out/{item['request_id']}/"
        result = logic.read_result(item["request_id"], self._result(f"{folder}result.json"))
        if result is None:
            return None
        if not result.trained:
            return logic.Ended(logic.failed(item, result), prefix)
        artifact = f"{folder}model.tar.gz"
        size, digest = self._artifact(artifact)
        if not logic.is_sound(size, digest, result):
            request_id = item["request_id"]
            log_event(self._log, "artifact does not match", request_id=request_id, size=size)
            return None
        return logic.Ended(logic.trained(item, artifact), prefix, result.run)

    def _result(self, key: str) -> bytes | None:
        answer = get_object(self._s3, self._bucket, key)
        return answer["Body"].read(logic.MAX_RESULT_BYTES + 1) if answer else None

    def _artifact(self, key: str) -> tuple[int | None, str | None]:
        """Size of the archive and its SHA-256, each None where there is none to be had."""
        answer = get_object(self._s3, self._bucket, key)
        if answer is None:
            return None, None
        size, body = answer["ContentLength"], answer["Body"]
        if size > logic.MAX_HASHED_BYTES:
            body.close()
            return size, None
        digest = hashlib.sha256()
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            digest.update(chunk)
        return size, digest.hexdigest()


def earlier_prefixes(event: Mapping[str, Any]) -> list[str]:
    """Where the attempts before the event's own have their files, the newest first.

    Those of the same batch, and of the batch that had its requests before, if the input names one.

    Args:
        event: Payload of a state of ``onboard_batch``; ``asked``, its input, is absent in the
            executions of older machines.
    """
    prefixes = keys.batch_prefixes(event["batch_id"], event["attempt"] - 1)
    before = keys.batch_of_job(str(event.get("asked", {}).get("earlier_job", "")))
    return prefixes + (keys.batch_prefixes(*before) if before else [])
