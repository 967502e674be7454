"""How bodies travel through Triton's SageMaker routes; the other shell takes them as they are.

A request whose content type is ``RAW_TYPE`` is the body itself, so a caller need not know which
shell serves. An answer of Triton's has a JSON header before the body; its content type says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

_BINARY_TYPE: Final = "application/vnd.sagemaker-triton.binary+json;json-header-size="

# The model that owns the engine (``inference/triton``).
RESIDENT: Final = "base"

# A header of no bytes: all of the body is the one input.
RAW_TYPE: Final = f"{_BINARY_TYPE}0"


def wrap(body: bytes, accept: str) -> tuple[bytes, str]:
    """A body with a header that asks for another media type than JSON.

    Args:
        body: A ``GenerateRequest`` as JSON.
        accept: The media type to answer with: Triton hands no HTTP headers on.

    Returns:
        What to send, and its content type.
    """
    header = {
        "parameters": {"accept": accept},
        "inputs": [
            {
                "name": "request",
                "shape": [len(body)],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": len(body)},
            }
        ],
        "outputs": [{"name": "response", "parameters": {"binary_data": True}}],
    }
    encoded = json.dumps(header).encode()
    return encoded + body, f"{_BINARY_TYPE}{len(encoded)}"


def unwrap(content: bytes, content_type: str) -> bytes:
    """The body of an answer of either shell.

    Args:
        content: What came.
        content_type: Its content type; decides whether a header is before the body.
    """
    size = content_type.removeprefix(_BINARY_TYPE)
    if size == content_type or not size.isdecimal():
        return content
    return content[int(size) :]


def own_words(text: str) -> str:
    """The error of ours in an error of Triton's, as JSON; the text itself where there is none.

    Triton answers ``{"error": "…"}``, with our JSON in the text, before and behind it words of its
    own.

    Args:
        text: The body of an answer that is an error.
    """
    try:
        outer = json.loads(text)
    except ValueError:
        return text
    said = outer.get("error") if isinstance(outer, Mapping) else None
    if not isinstance(said, str) or (start := said.find('{"error": {')) < 0:
        return text
    try:
        error, _ = json.JSONDecoder().raw_decode(said, start)
    except ValueError:
        return text
    return json.dumps(error)
