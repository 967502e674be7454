"""Why a training program failed, from what it left in ``output/failure``."""

from __future__ import annotations

import re
from typing import Final

from limner.contracts.errors import REGISTRY, LimnerError

# "CODE: message Fix: …", perhaps behind SageMaker's "AlgorithmError: " and the SDK's own words.
_REASON: Final = re.compile(r"\b([A-Z][A-Z_]+): ")
_EXIT: Final = re.compile(r", exit code: \d+\s*$")
_MAX_TEXT: Final = 500


def error_of(text: str) -> LimnerError:
    """The registry's error in a failure's reason; ``TRAINING_FAILED`` where there is none."""
    for found in _REASON.finditer(text):
        if found[1] in REGISTRY:
            message = _EXIT.sub("", text[found.end() :]).partition(" Fix: ")[0]
            return LimnerError(found[1], message.strip())
    return LimnerError("TRAINING_FAILED", text.strip()[:_MAX_TEXT])
