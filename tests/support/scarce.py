"""The ASGI shell, or by its import any shell, on a machine that fails at certain prompts.

No machine runs out of memory or loses its GPU on demand. At one prompt the engine answers as it
does when torch finds no memory; at another, drawing raises what torch raises for a lost device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch

from inference.engine.denoise import Artist, Drawing
from inference.engine.engine import Engine, Generation
from inference.server.__main__ import leave, main
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

GREEDY = "as large as all memory"
FATAL = "a lost device"

_submit = Engine.submit
_begin = Artist.begin


def submit(
    engine: Engine,
    name: str,
    request: GenerateRequest,
    on_step: Callable[[int, int], None] | None = None,
) -> Future[Generation]:
    if request.prompt != GREEDY:
        return _submit(engine, name, request, on_step)
    engine.get(name)
    refused: Future[Generation] = Future()
    refused.set_exception(LimnerError("OUT_OF_MEMORY"))
    return refused


def begin(artist: Artist, wishes: Sequence[tuple[str, GenerateRequest]]) -> list[Drawing]:
    if any(prompt == FATAL for prompt, _ in wishes):
        raise torch.AcceleratorError("an illegal memory access was encountered")
    return _begin(artist, wishes)


Engine.submit = submit  # type: ignore[method-assign]
Artist.begin = begin  # type: ignore[method-assign]

if __name__ == "__main__":
    leave(main())
