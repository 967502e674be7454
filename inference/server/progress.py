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

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from inference.engine.engine import Generation
from inference.reports import Facts, named, report, stopped
from limner.contracts.errors import LimnerError

EVENTS_TYPE: Final = "text/event-stream"


class Progress:
    """The steps of one generation, from the drawing thread to the event loop.

    To be made on the event loop, when the request has come.

    Args:
        facts: For its line in the log, which is written when the last event has been sent.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._wrong: LimnerError | None = LimnerError("GENERATION_CANCELLED")  # the reader has gone
        self._has_ended = False
        self._started = time.perf_counter()
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def on_step(self, done: int, steps: int) -> None:
        """Tells of a step; from any thread, at once."""
        self._loop.call_soon_threadsafe(self._done.put_nowait, (done, steps))

    async def events(
        self, future: Future[Generation], answer: Callable[[Generation], Awaitable[bytes]]
    ) -> AsyncIterator[bytes]:
        """The events, to be read by an ``EventStream``.

        Args:
            future: Of the generation that ``on_step`` hears of.
            answer: Makes the answer's JSON of it.
        """
        drawing = asyncio.wrap_future(future)
        drawing.add_done_callback(lambda _: self._done.put_nowait(None))
        try:
            while (now := await self._done.get()) is not None:
                done, steps = now
                yield _event("step", json.dumps({"step": done, "steps": steps}).encode())
            try:
                last = _event("answer", await answer(drawing.result()))
                self._wrong = None
            except Exception as error:  # noqa: BLE001 (the process boundary, as in the app)
                self._wrong = named("invoke", self._facts, error)
                last = _error(self._wrong)
            yield last
            self._has_ended = True  # only now: a send that is cancelled has sent nothing
        finally:
            drawing.cancel()

    def stop(self) -> bytes:
        """The last event of a stream that the server must end; empty if that has been sent."""
        if self._has_ended:
            return b""
        self._wrong = stopped()
        return _error(self._wrong)

    def report(self) -> None:
        """Writes the line, when nothing more is sent."""
        report("invoke", self._facts, self._wrong, self._started)


class EventStream(StreamingResponse):
    """Sends the events; a reader who goes away cancels the generation.

    Args:
        progress: Whose they are.
        events: Its ``events``.
    """

    media_type = EVENTS_TYPE

    def __init__(self, progress: Progress, events: AsyncIterator[bytes]) -> None:
        super().__init__(events)
        self._progress = progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of it, and its last event also if the server cannot wait any longer."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            # The time of grace after SIGTERM is over. A reader who goes away does not lead here:
            # Starlette then ends the events itself, and returns.
            await send({"type": "http.response.body", "body": self._progress.stop()})
        finally:
            self._progress.report()


def _error(error: LimnerError) -> bytes:
    return _event("error", json.dumps(error.to_dict()).encode())


def _event(name: str, data: bytes) -> bytes:
    """One event; JSON has no line breaks outside of its strings, and in them they are escaped."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
