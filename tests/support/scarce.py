"""The ASGI shell, or by its import any shell, on a machine that fails or waits at certain prompts.

No machine runs out of memory, loses its GPU or is slow on demand. At one prompt the engine answers
as it does when torch finds no memory; at another, drawing raises what torch raises for a lost
device; at a third (``held.HELD``) it waits at a gate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import torch

from inference.engine.denoise import Artist, Drawing
from inference.engine.engine import Engine, Generation
from inference.server.__main__ import leave, main
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.support.held import GATE_VARIABLE, HELD, Gate

GREEDY = "as large as all memory"
FATAL = "a lost device"

GATE = Gate(Path(os.environ.get(GATE_VARIABLE, ".")))

_submit = Engine.submit
_begin = Artist.begin


def submit(
    engine: Engine,
    name: str,
    request: GenerateRequest,
    on_step: Callable[[int, int], None] | None = None,
) -> Future[Generation]:
    if request.prompt == GREEDY:
        engine.get(name)
        refused: Future[Generation] = Future()
        refused.set_exception(LimnerError("OUT_OF_MEMORY"))
        return refused
    generation = _submit(engine, name, request, on_step)
    if request.prompt == HELD:
        GATE.come()
    return generation


def begin(artist: Artist, wishes: Sequence[tuple[str, GenerateRequest]]) -> list[Drawing]:
    if any(prompt == FATAL for prompt, _ in wishes):
        raise torch.AcceleratorError("an illegal memory access was encountered")
    if any(prompt == HELD for prompt, _ in wishes):
        GATE.wait()
    return _begin(artist, wishes)


Engine.submit = submit  # type: ignore[method-assign]
Artist.begin = begin  # type: ignore[method-assign]

if __name__ == "__main__":
    leave(main())
