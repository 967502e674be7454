"""The routes of SageMaker's multi-model container contract.

Load, list, get, invoke and unload, with the status codes that the platform acts on: 404 not
loaded, 409 already loaded, 507 no slot free (it then unloads another model and tries again).
Every error body is ``LimnerError.to_dict()``.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference.answers import Form, encode_answer
from inference.bodies import model_folder
from inference.capture import Capture
from inference.engine.engine import Engine, Generation, LoadedModel
from inference.logs import fingerprint
from inference.reports import Facts, named, report, stopped
from inference.server.progress import EVENTS_TYPE, EventStream, Progress
from inference.server.requests import LoadRequest, check_name, read_body, read_page
from limner.contracts.errors import LimnerError
from limner.contracts.generation import TARGET_HEADER, GenerateRequest

Handler = Callable[[Request, Facts], Awaitable[Response]]


class Api:
    """Handlers over one engine.

    Args:
        engine: The engine.
        models_root: Folder under which every model's ``url`` must lie.
        capture: Keeps what is drawn; None for nothing.
    """

    def __init__(self, engine: Engine, models_root: Path, capture: Capture | None = None) -> None:
        self._engine = engine
        self._models_root = models_root
        self._capture = capture

    async def ping(self, _: Request) -> Response:
        """``GET /ping``: 500 when nothing can be drawn any more, upon which SageMaker replaces us.

        The base is in memory, or this process would not listen.
        """
        return Response(status_code=200 if self._engine.is_sound else 500)

    async def load(self, request: Request, facts: Facts) -> Response:
        """``POST /models``."""
        body = await read_body(request, LoadRequest)
        facts["model"] = body.model_name
        folder = model_folder(body.url, self._models_root)
        model = await run_in_threadpool(self._engine.load, body.model_name, folder)
        facts["load_ms"] = round(model.load_ms, 2)
        return JSONResponse(_described(model))

    async def list(self, request: Request, facts: Facts) -> Response:
        """``GET /models``, in pages; a token is the name that the last page ended with."""
        page = read_page(request)
        models = self._engine.models()
        start = bisect_right(models, page.next_page_token, key=lambda model: model.name)
        shown = models[start : start + page.limit]
        facts["models"] = len(models)
        answer: dict[str, object] = {"models": [_described(model) for model in shown]}
        if start + page.limit < len(models):
            answer["nextPageToken"] = shown[-1].name
        return JSONResponse(answer)

    async def get(self, request: Request, facts: Facts) -> Response:
        """``GET /models/{model}``."""
        return JSONResponse(_described(self._engine.get(_named(request, facts))))

    async def unload(self, request: Request, facts: Facts) -> Response:
        """``DELETE /models/{model}``; waits for the model's running generations."""
        name = _named(request, facts)
        await run_in_threadpool(self._engine.unload, name)
        return JSONResponse({"modelName": name})

    async def invoke(self, request: Request, facts: Facts) -> Response:
        """``POST /models/{model}/invoke``."""
        name = _named(request, facts)
        body = await read_body(request, GenerateRequest)
        form = Form.of(request.headers.get("accept", ""), body)
        facts.update(images=body.images, steps=body.steps)
        streams = request.headers.get("accept", "").startswith(EVENTS_TYPE)
        progress = Progress(facts) if streams else None
        future = self._engine.submit(name, body, progress.on_step if progress else None)

        async def answer(generation: Generation) -> bytes:
            encoded = await run_in_threadpool(encode_answer, generation, form)
            facts.update(
                queue_ms=round(generation.queue_ms, 2),
                denoise_ms=round(generation.denoise_ms, 2),
            )
            if self._capture:
                target = request.headers.get(TARGET_HEADER)
                facts["capture"] = self._capture.offer(target, body, generation, encoded)
            return encoded.content

        if progress:
            return EventStream(progress, progress.events(future, answer))
        content = await answer(await _unless_gone(request, future))
        return Response(content, media_type=form.media_type)


async def _unless_gone(request: Request, future: Future[Generation]) -> Generation:
    """The generation; it is cancelled as soon as the client has gone away.

    Raises:
        LimnerError: ``GENERATION_CANCELLED``; ``GENERATION_FAILED``, if the server cannot wait
            any longer; the generation's own.
    """
    drawing = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_gone(request))
    either: set[asyncio.Future[Any]] = {drawing, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            raise LimnerError("GENERATION_CANCELLED")
        return drawing.result()
    except asyncio.CancelledError:  # the time of grace after SIGTERM is over
        raise stopped() from None
    finally:
        gone.cancel()
        drawing.cancel()  # nothing happens to what is done


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def build_app(engine: Engine, models_root: Path, capture: Capture | None = None) -> Starlette:
    """The ASGI application over an engine and a capture, which it closes when it ends."""
    api = Api(engine, models_root, capture)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        # Not on the threads of requests: all of them may be waiting, for models to be unloaded.
        await asyncio.to_thread(engine.close)
        if capture:
            await asyncio.to_thread(capture.close)

    return Starlette(
        routes=[
            Route("/ping", api.ping),
            Route("/models", _guarded("load", api.load), methods=["POST"]),
            Route("/models", _guarded("list", api.list), methods=["GET"]),
            Route("/models/{model}", _guarded("get", api.get), methods=["GET"]),
            Route("/models/{model}", _guarded("unload", api.unload), methods=["DELETE"]),
            Route("/models/{model}/invoke", _guarded("invoke", api.invoke), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )


def _guarded(event: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Turns errors into answers, and writes one line a request."""

    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        facts: Facts = {}
        # The platform sends the original TargetModel; it holds the user's id.
        if target := request.headers.get(TARGET_HEADER):
            facts["target"] = fingerprint(target)
        error: LimnerError | None = None
        try:
            response = await handler(request, facts)
        except Exception as raised:  # noqa: BLE001 (the process boundary: an answer, and a line)
            error = named(event, facts, raised)
            response = _error(error)
        if not isinstance(response, EventStream):  # that one has not begun yet
            report(event, facts, error, started)
        return response

    return endpoint


async def _no_route(_: Request, raised: Exception) -> Response:
    """Unknown paths and methods, in the one shape of errors."""
    status = raised.status_code if isinstance(raised, HTTPException) else 400
    body = LimnerError("INVALID_INPUT", "There is no such route or method.").to_dict()
    return JSONResponse(body, status)


def _error(error: LimnerError) -> Response:
    return JSONResponse(error.to_dict(), error.spec.http_status)


def _named(request: Request, facts: Facts) -> str:
    name: str = request.path_params["model"]
    facts["model"] = check_name(name)
    return name


def _described(model: LoadedModel) -> dict[str, str]:
    return {"modelName": model.name, "modelUrl": str(model.folder)}
