"""What became of a request of a batch, as the items of ``onboard_batch`` carry it.

::

    planned ──> trained | failed | missing          ended: the request was over before the job began
"""

from __future__ import annotations

from typing import Final

PLANNED: Final = "planned"
TRAINED: Final = "trained"
FAILED: Final = "failed"
MISSING: Final = "missing"
ENDED: Final = "ended"
# An item's message travels through the execution, whose payload all items share.
MAX_CAUSE_CHARS: Final = 300


def failure(code: str, message: str) -> dict[str, str]:
    """The ``error`` of an item, in the words of a Catch.

    Args:
        code: A code of the error registry.
        message: The case at hand; cut at ``MAX_CAUSE_CHARS``.
    """
    return {"Error": code, "Cause": message[:MAX_CAUSE_CHARS]}
