"""A generation told step by step, as server-sent events, to callers that can stream.

::

    event: step      data: {"step": 3, "steps": 20}
    event: answer    data: a GenerateResponse, the last event
    event: error     data: an error of the registry, instead of the answer

SageMaker's own streaming call, InvokeEndpointWithResponseStream, knows no TargetModel (botocore's
model of the SageMaker runtime), so on a multi-model endpoint nobody can ask for this: it is for
those who reach the container itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from typing import Final

from inference.engine.engine import Generation
from inference.reports import Facts, named, report
from limner.contracts.errors import LimnerError

EVENTS_TYPE: Final = "text/event-stream"


class Progress:
    """The steps of one generation, from the drawing thread to the event loop.

    To be made on the event loop, when the request has come.

    Args:
        facts: For its line in the log, which is written when the last event has been read.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._started = time.perf_counter()
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def on_step(self, done: int, steps: int) -> None:
        """Tells of a step; from any thread, at once."""
        self._loop.call_soon_threadsafe(self._done.put_nowait, (done, steps))

    async def events(
        self, future: Future[Generation], answer: Callable[[Generation], Awaitable[bytes]]
    ) -> AsyncIterator[bytes]:
        """The events; whoever stops reading them cancels the generation.

        Args:
            future: Of the generation that ``on_step`` hears of.
            answer: Makes the answer's JSON of it.
        """
        drawing = asyncio.wrap_future(future)
        drawing.add_done_callback(lambda _: self._done.put_nowait(None))
        wrong: LimnerError | None = LimnerError("GENERATION_CANCELLED")  # the reader has gone
        try:
            while (now := await self._done.get()) is not None:
                done, steps = now
                yield _event("step", json.dumps({"step": done, "steps": steps}).encode())
            try:
                last, wrong = _event("answer", await answer(drawing.result())), None
            except Exception as error:  # noqa: BLE001 (the process boundary, as in the app)
                wrong = named("invoke", self._facts, error)
                last = _event("error", json.dumps(wrong.to_dict()).encode())
            yield last
        finally:
            drawing.cancel()
            report("invoke", self._facts, wrong, self._started)


def _event(name: str, data: bytes) -> bytes:
    """One event; JSON has no line breaks outside of its strings, and in them they are escaped."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
