"""Checksums of browser uploads (presigned POST).

Amazon S3 API reference, "POST Object" and "Checking object integrity": a form field
``x-amz-checksum-sha256`` is the checksum that the object must have; "if the values don't match,
Amazon S3 doesn't store the object" and answers 400 BadDigest. GetObject and HeadObject give it back
with ``x-amz-checksum-mode: ENABLED``. ministack enforces the policy (its expiry, each condition, no
fields beyond it) and leaves the checksum alone.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any

from limner.local.json_types import Json
from limner.local.seams import Module

_body: contextvars.ContextVar[bytes] = contextvars.ContextVar("form-file", default=b"")
_checksums: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar(
    "form-checksums", default=None
)


def install(storage: Module) -> None:
    """Installs the correction of this module.

    Args:
        storage: ``ministack.services.s3``.
    """
    storage._post_object = _with_form(storage)
    storage._enforce_signed_post_policy = _with_checksum(storage)
    storage._build_object_record = _with_stored_checksum(storage)


def _with_form(storage: Module) -> Callable[..., Any]:
    post = storage._post_object

    def post_object(bucket: str, body: bytes, headers: dict[str, str]) -> Json:
        parts = storage._parse_multipart_form(headers.get("content-type", ""), body) or []
        file = next((value for name, _, _, value in parts if name == "file"), b"")
        token, stored = _body.set(file), _checksums.set(None)
        try:
            return post(bucket, body, headers)
        finally:
            _body.reset(token)
            _checksums.reset(stored)

    return post_object


def _with_checksum(storage: Module) -> Callable[..., Any]:
    """The policy first, then the checksum, and only then the object."""
    enforce = storage._enforce_signed_post_policy

    def enforce_and_check(fields: Mapping[str, str], *others: Json) -> Json:
        refused = enforce(fields, *others)
        if refused:
            return refused
        checksums, mismatch = storage._resolve_object_checksums(_body.get(), dict(fields))
        _checksums.set(checksums)
        return mismatch

    return enforce_and_check


def _with_stored_checksum(storage: Module) -> Callable[..., Any]:
    build = storage._build_object_record

    def build_record(body: bytes, headers: dict[str, str], **others: Json) -> Json:
        checksums = _checksums.get()
        if checksums:
            others = {**others, "checksums": checksums}
        return build(body, headers, **others)

    return build_record
