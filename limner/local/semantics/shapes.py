"""Shapes of results that the engine flattens.

Amazon S3 API reference, CopyObject: the response's body is ``CopyObjectResult``, with ETag and
LastModified in it; an aws-sdk task hands on the SDK's response, which keeps that member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limner.local.json_types import Json
from limner.local.seams import Module

# Response members that S3 sends as headers, beside the body.
_HEADERS = frozenset({"VersionId", "CopySourceVersionId", "Expiration", "ServerSideEncryption"})


def install(engine: Module) -> None:
    """Installs the correction of this module."""
    engine._dispatch_aws_sdk_rest_xml = _with_copy_result(engine)


def _with_copy_result(engine: Module) -> Callable[..., Any]:
    dispatch = engine._dispatch_aws_sdk_rest_xml

    def dispatch_rest_xml(
        service_info: dict[str, Any], service: str, action: str, data: dict[str, Any]
    ) -> Json:
        result = dispatch(service_info, service, action, data)
        if (service, action) != ("s3", "copyObject") or "CopyObjectResult" in result:
            return result
        return {
            "CopyObjectResult": {k: v for k, v in result.items() if k not in _HEADERS},
            **{k: v for k, v in result.items() if k in _HEADERS},
        }

    return dispatch_rest_xml
