"""The ASGI shell, or by its import any shell, on a machine whose memory ends at a certain prompt.

No machine runs out of memory on demand. The engine answers as it does when torch finds none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future

from inference.engine.engine import Engine, Generation
from inference.server.__main__ import main
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

GREEDY = "as large as all memory"

_submit = Engine.submit


def submit(
    engine: Engine,
    name: str,
    request: GenerateRequest,
    on_step: Callable[[int], None] | None = None,
) -> Future[Generation]:
    if request.prompt != GREEDY:
        return _submit(engine, name, request, on_step)
    engine.get(name)
    refused: Future[Generation] = Future()
    refused.set_exception(LimnerError("OUT_OF_MEMORY"))
    return refused


Engine.submit = submit  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
