"""An artist that draws nothing, so that tests of queue, locks and slots are fast and exact."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inference.engine.denoise import is_guided
from inference.engine.engine import Generation
from inference.engine.lora import Share
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

# Every random adapter has it.
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@dataclass
class StubDrawing:
    request: GenerateRequest
    context: Tensor
    step: int = 0
    seen: set[float] = field(default_factory=set)
    is_torn: bool = False

    @property
    def steps(self) -> int:
        return self.request.steps

    @property
    def rows(self) -> int:
        return len(self.context)

    @property
    def is_done(self) -> bool:
        return self.step == self.steps


@dataclass(frozen=True)
class StubPass:
    drawings: tuple[StubDrawing, ...]
    shares: tuple[Share, ...]


class StubArtist:
    """Its images are what it read in its slots: ``[images, 1, 1, 3]``, the weights' first number.

    Args:
        layer: A layer that every adapter has.

    Attributes:
        passes: Seeds of the requests in each pass, in the order of its rows.
        turn: Called before each step, with the seeds.
        fails: Seeds whose pass raises.
        fits: Requests that a pass has memory for; None for any number.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.passes: list[list[int]] = []
        self.turn: Callable[[list[int]], None] = lambda _: None
        self.fails: dict[int, Exception] = {}
        self.fits: int | None = None

    def begin(self, wishes: Sequence[tuple[str, GenerateRequest]]) -> list[StubDrawing]:
        return [
            StubDrawing(request, torch.empty(request.images * (1 + is_guided(request)), 1, 1))
            for _, request in wishes
        ]

    def assemble(self, drawings: Sequence[StubDrawing], shares: tuple[Share, ...]) -> StubPass:
        return StubPass(tuple(drawings), shares)

    def step(self, batch: StubPass) -> None:
        seeds = [drawing.request.seed for drawing in batch.drawings]
        self.turn(seeds)
        self.passes.append(seeds)
        if self.fits is not None and len(seeds) > self.fits:
            take_all_memory()
        for seed in seeds:
            if seed in self.fails:
                raise self.fails[seed]
        numbers: list[float] = []
        for share in batch.shares:
            a = share.factors[self.layer].a.flatten(1)[:, 0].tolist()
            each = (share.rows.stop - share.rows.start) // len(a)
            numbers += [number for number in a for _ in range(each)]
        for drawing in batch.drawings:
            drawing.seen |= set(numbers[: drawing.rows])
            numbers = numbers[drawing.rows :]
            drawing.step += 1

    def finish(self, drawings: Sequence[StubDrawing]) -> list[np.ndarray]:
        for drawing in drawings:
            assert len(drawing.seen) == 1, "the slot changed while it was drawn with"
        return [
            np.full((drawing.request.images, 1, 1, 3), next(iter(drawing.seen)))
            for drawing in drawings
        ]


def code(future: Future[Generation]) -> str:
    """The code of the error that a generation ends with."""
    error = future.exception(timeout=60)
    assert isinstance(error, LimnerError)
    return error.code


def take_all_memory(*_: object) -> None:
    """Raises what torch's own allocator raises."""
    torch.empty(1 << 50)


class Gate:
    """Holds the drawing thread before each step until a test lets it go on."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self._reached = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, _seeds: list[int]) -> None:
        if not self._open.is_set():
            self._reached.release()
            assert self._steps.acquire(timeout=30)

    def reached(self) -> None:
        """Returns when the drawing thread stands before a step."""
        assert self._reached.acquire(timeout=30)

    def step(self) -> None:
        """Lets one step happen."""
        self._steps.release()

    def shut(self) -> None:
        """Holds it again; nothing may be drawn meanwhile."""
        self._steps = threading.Semaphore(0)
        self._reached = threading.Semaphore(0)
        self._open.clear()

    def open(self) -> None:
        """Lets all go on."""
        self._open.set()
        self._steps.release()


class Painter(StubArtist):
    """Draws small grey images."""

    def finish(self, drawings: Sequence[StubDrawing]) -> list[np.ndarray]:
        return [np.full((one.request.images, 8, 8, 3), 99, np.uint8) for one in drawings]
