"""What comes over HTTP: bodies, model names, pages, refused unless they have the agreed form."""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from inference.bodies import TOO_LARGE, Body, parse_body
from limner.contracts.errors import LimnerError
from limner.contracts.generation import MAX_BODY_BYTES
from limner.contracts.training import explain

# The platform's names are opaque hashes; this is a superset that is safe in logs and paths.
_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class LoadRequest(BaseModel):
    """Body of ``POST /models`` (SageMaker developer guide, custom containers contract).

    Attributes:
        model_name: The platform's opaque name of the model.
        url: Folder of the unpacked artifact.
    """

    # The platform may add fields to its own contract.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_name: str = Field(pattern=rf"^{_MODEL_NAME.pattern}$")
    url: str = Field(min_length=1, max_length=1024)


class PageRequest(BaseModel):
    """Query of ``GET /models``.

    Attributes:
        next_page_token: Where the last page ended; from an answer's ``nextPageToken``.
        limit: Models on a page.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    next_page_token: str = ""
    limit: int = Field(default=100, ge=1, le=1000)


def check_name(name: str) -> str:
    """A model's name from a path, which is safe in logs from here on.

    Raises:
        LimnerError: ``MODEL_NOT_LOADED``, if no model can have such a name.
    """
    if not _MODEL_NAME.fullmatch(name):
        raise LimnerError("MODEL_NOT_LOADED")
    return name


async def read_body(request: Request, form: type[Body]) -> Body:
    """Reads a JSON body of limited size.

    Raises:
        LimnerError: ``INVALID_INPUT``, if it is too large, no JSON, or not of the form.
    """
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BODY_BYTES:
                raise LimnerError("INVALID_INPUT", TOO_LARGE)
    except ClientDisconnect as error:
        raise LimnerError("INVALID_INPUT", "The body ended early.") from error
    return parse_body(bytes(content), form)


def read_page(request: Request) -> PageRequest:
    """Reads the query of a listing.

    Raises:
        LimnerError: ``INVALID_INPUT``.
    """
    try:
        return PageRequest.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"Query: {explain(error)}.") from error
