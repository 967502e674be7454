"""Pages of the List operations."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from limner.local.errors import validation

_DEFAULT_PAGE = 10


def page(member: str, items: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    """One page of ``items``, with NextToken while there are more.

    Raises:
        ServiceError: ``ValidationException`` for a token that we did not give out.
    """
    start = _offset(request.get("NextToken"))
    end = start + request.get("MaxResults", _DEFAULT_PAGE)
    answer: dict[str, Any] = {member: items[start:end]}
    if end < len(items):
        answer["NextToken"] = base64.urlsafe_b64encode(str(end).encode()).decode()
    return answer


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError) as error:
        raise validation("The NextToken is not valid.") from error
