"""The engine: load, unload, and generate, with one base and one thread that draws.

::

    load ──> artifact checked ──> host copy (bounded by bytes: 507) ─┐
                                                                     │ LRU, by bytes
    submit ──> prompt checked ──> queue ──> batch  <── slot on the device
                                              │
                                 images checked ──> Future[Generation]

A model stays in memory while one of its requests waits or is drawn; unloading waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Final

from inference import metrics
from inference.engine.bank import Residency
from inference.engine.base import ResidentBase
from inference.engine.batcher import Batcher, Drawn, Order
from inference.engine.denoise import Artist, Pixels, is_guided, latent_size
from inference.engine.memory import memory_errors
from inference.engine.reader import Adapter, check_artifact, read_adapter
from inference.engine.safety import Guard, SafetyCheck
from inference.engine.table import Table
from limner.contracts.artifact import Manifest
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

# InvokeEndpoint gives up after 60 s (SageMaker developer guide), so nobody waits for an answer
# to a request that is older; whoever is behind it in the queue does.
MAX_ANSWER_S: Final = 60.0
# SageMaker gives up on an unload after 360 s; Triton waits up to 350 s, and so do we.
UNLOAD_TIMEOUT_S: Final = 350.0
ADAPTER_BYTES: Final = 1 << 30
SLOT_BYTES: Final = 256 << 20
MAX_ROWS: Final = 16
MAX_QUEUE: Final = 64
MAX_REQUEST_ROWS: Final = 64

TOKEN: Final = "{token}"  # noqa: S105 (a word in prompts, no secret)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        name: The platform's opaque name of it.
        folder: Where it was read from.
        adapter: Its weights.
        load_ms: Milliseconds from folder to memory.
    """

    name: str
    folder: Path
    adapter: Adapter
    load_ms: float

    @property
    def manifest(self) -> Manifest:
        """What its artifact says of itself."""
        return self.adapter.manifest


@dataclass(frozen=True)
class _Asked:
    """A request that is on its way.

    Attributes:
        model: Held until it is drawn.
        request: What was asked for.
        prompt: With the token filled in.
        future: Of its answer.
        deadline: ``perf_counter`` after which nobody waits for it.
    """

    model: LoadedModel
    request: GenerateRequest
    prompt: str
    future: Future[Generation]
    deadline: float

    def is_wanted(self) -> bool:
        """Whether somebody waits for it."""
        return not self.future.cancelled()


@dataclass(frozen=True)
class Generation:
    """What was drawn.

    Attributes:
        pixels: ``[images, height, width, 3]``, 0 to 255.
        seeds: The seed of each image.
        prompt: The prompt as it was drawn.
        base_id: The base.
        adapter_sha256: The manifest's hash of the adapter.
        queue_ms: Milliseconds between submission and start.
        denoise_ms: Milliseconds in the text encoder, the denoising loop and the decoder; whoever
            shared the passes has the same ones.
    """

    pixels: Pixels
    seeds: tuple[int, ...]
    prompt: str
    base_id: str
    adapter_sha256: str
    queue_ms: float
    denoise_ms: float


class Engine:
    """One resident base and the adapters on it; safe to use from any thread.

    Args:
        base: The base; from now on only the engine may run its UNet.
        max_models: Models in memory at most.
        max_rank: Highest rank that is loaded.
        adapter_bytes: Bytes of all adapters in the host's memory. A load beyond is
            ``OUT_OF_MEMORY``, upon which the platform unloads another model.
        slot_bytes: Bytes of all slots on the device.
        max_rows: Rows that are drawn at the same time; a guided image takes two, and larger ones
            than the base's own count by their area.
        max_queue: Requests that may wait; a quarter of them may be one model's. With a check it
            also bounds what waits for that (``inference.engine.safety.Guard``).
        max_request_rows: Rows of one request at most. It is drawn alone where it has more than
            ``max_rows``, and nobody can end or join it within a step.
        answer_s: Seconds after which nobody waits for an answer any more.
        safety: Check of prompts and images, if any.
    """

    def __init__(
        self,
        base: ResidentBase,
        *,
        max_models: int,
        max_rank: int,
        adapter_bytes: int = ADAPTER_BYTES,
        slot_bytes: int = SLOT_BYTES,
        max_rows: int = MAX_ROWS,
        max_queue: int = MAX_QUEUE,
        max_request_rows: int = MAX_REQUEST_ROWS,
        answer_s: float = MAX_ANSWER_S,
        safety: SafetyCheck | None = None,
    ) -> None:
        self._base = base
        self._max_rank = max_rank
        self._max_request_rows = max_request_rows
        self._answer_s = answer_s
        self._models: Table[LoadedModel] = Table(max_models, adapter_bytes)
        self._residency = Residency(slot_bytes, max_models, base.device, base.dtype)
        self._batcher = Batcher(
            Artist(base), self._residency, max_rows=max_rows, max_queue=max_queue
        )
        self._guard = Guard(safety, answer_s, max_queue) if safety else None

    @property
    def base(self) -> ResidentBase:
        """The base."""
        return self._base

    @property
    def is_sound(self) -> bool:
        """Whether it can draw and answer.

        It cannot any more when its thread has ended, or while a call of the app's check has not
        returned for longer than anybody waits for an answer.
        """
        is_stuck = self._guard is not None and self._guard.is_stuck
        return not (self._batcher.has_failed or is_stuck)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the adapters in the host's memory and of all slots on the device."""
        return self._models.size_bytes + self._residency.size_bytes

    def load(self, name: str, folder: Path) -> LoadedModel:
        """Checks an artifact and copies its adapter to memory.

        Raises:
            LimnerError: ``MODEL_ALREADY_LOADED``, ``OUT_OF_MEMORY``, ``ARTIFACT_INVALID`` or
                ``ARTIFACT_WRONG_BASE``.
        """
        self._models.reserve(name)
        started = time.perf_counter()
        filled = False
        try:
            with memory_errors():
                checked = check_artifact(folder, self._base, self._max_rank)
                if checked.size_bytes > self._residency.budget_bytes:
                    raise LimnerError(
                        "OUT_OF_MEMORY",
                        f"One adapter of {checked.size_bytes} bytes fills all slots.",
                    )
                self._models.charge(name, checked.size_bytes)
                adapter = read_adapter(checked, self._base)
            model = LoadedModel(name, folder, adapter, _ms_since(started))
            self._models.fill(name, model)
            filled = True
        finally:
            if not filled:
                self._models.cancel(name)
        self._record(
            name,
            {metrics.LOAD_MS: model.load_ms, metrics.RESIDENT_BYTES: self.resident_bytes},
        )
        return model

    def unload(self, name: str) -> None:
        """Frees a model's memory after its requests have ended; new ones are refused at once.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``, or ``DEADLINE_EXCEEDED``.
        """
        model = self._models.unload(name, UNLOAD_TIMEOUT_S)
        self._residency.drop(model.adapter)

    def get(self, name: str) -> LoadedModel:
        """A loaded model.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        return self._models.get(name)

    def models(self) -> list[LoadedModel]:
        """All loaded models, sorted by name."""
        return [model for _, model in self._models.items()]

    def submit(
        self,
        name: str,
        request: GenerateRequest,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Future[Generation]:
        """Queues a generation; the model stays loaded until it has ended.

        Args:
            name: A loaded model.
            request: What to draw.
            on_step: Told how many steps are done, and of how many, after each. The drawing thread
                calls it, and waits: it must return at once, and not raise.

        Returns:
            A future, which may be cancelled at any time: the request then leaves at the next
            step. Its ``LimnerError`` may be ``DEADLINE_EXCEEDED``, ``OUT_OF_MEMORY``,
            ``ARTIFACT_INVALID``, ``CONTENT_REFUSED`` or ``GENERATION_FAILED``; where there is a
            check, ``ENDPOINT_BUSY``, too.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``, ``INVALID_INPUT``, ``ENDPOINT_BUSY``, or
                ``GENERATION_FAILED`` if the engine was closed.
        """
        submitted = time.perf_counter()
        model = self._models.hold(name)
        queued = False
        try:
            # Not str.format: the prompt is the user's, and may hold any braces.
            prompt = request.prompt.replace(TOKEN, model.manifest.subject_phrase)
            size = latent_size(self._base, request)
            rows = self._rows(request, size)
            future: Future[Generation] = Future()
            deadline = submitted + self._answer_s
            asked = _Asked(model, request, prompt, future, deadline)
            order = Order(
                adapter=model.adapter,
                prompt=prompt,
                request=request,
                size=size,
                rows=rows,
                submitted=submitted,
                deadline=deadline,
                is_wanted=asked.is_wanted,
                on_step=on_step,
                done=partial(self._done, asked),
            )
            if self._guard is None:
                self._batcher.submit(order)
            else:
                self._guard.see_prompt(
                    name,
                    prompt,
                    request.negative_prompt,
                    deadline,
                    partial(self._prompt_seen, order),
                    asked.is_wanted,
                )
            queued = True
        finally:
            if not queued:
                self._models.release(name)
        return future

    def close(self) -> None:
        """Ends all generations at their next step, answers all, and takes no more."""
        self._batcher.close()
        if self._guard:
            self._guard.close()

    def _rows(self, request: GenerateRequest, size: tuple[int, int]) -> int:
        """Rows that a request takes; larger images than the base's own count as several.

        Raises:
            LimnerError: ``INVALID_INPUT``, if one request may not take so many.
        """
        own = self._base.resolution_px // self._base.pixels_per_latent
        area = max(1.0, size[0] * size[1] / own**2)
        rows = ceil(request.images * (2 if is_guided(request) else 1) * area)
        if rows > self._max_request_rows:
            raise LimnerError(
                "INVALID_INPUT",
                f"The images would take {rows} rows, this endpoint draws {self._max_request_rows}"
                " in one request: ask for fewer or smaller images, or for guidance 1.",
            )
        return rows

    def _prompt_seen(self, order: Order, error: Exception | None) -> None:
        """On a thread of the checks: queues what was allowed."""
        try:
            if error is None:
                self._batcher.submit(order)
        except LimnerError as refused:
            error = refused
        if error is not None:
            order.done(error)

    def _done(self, asked: _Asked, outcome: Drawn | Exception) -> None:
        """On the drawing thread, or one of a check: hands on what became of an order."""
        # Before the answer, so that who has it finds the model free.
        self._models.release(asked.model.name)
        if isinstance(outcome, Exception):
            _answer(asked.future, outcome)
            return
        try:
            generation = self._generation(asked, outcome)
        except Exception as error:  # noqa: BLE001 (the thread's boundary: somebody waits for it)
            _answer(asked.future, error)
            return
        if self._guard is None:
            _answer(asked.future, generation)
            return
        self._guard.see_images(
            asked.model.name,
            asked.prompt,
            outcome.pixels,
            asked.deadline,
            lambda error: _answer(asked.future, error or generation),
            asked.is_wanted,
        )

    def _generation(self, asked: _Asked, outcome: Drawn) -> Generation:
        """What was drawn; its figures are written down."""
        request = asked.request
        self._record(
            asked.model.name,
            {
                metrics.QUEUE_MS: outcome.queue_ms,
                metrics.DENOISE_MS: outcome.denoise_ms,
                metrics.SLOT_HITS: int(outcome.hit),
                metrics.SLOT_MISSES: int(not outcome.hit),
                metrics.EVICTIONS: outcome.evictions,
                metrics.RESIDENT_BYTES: self.resident_bytes,
            },
        )
        return Generation(
            pixels=outcome.pixels,
            seeds=tuple(range(request.seed, request.seed + request.images)),
            prompt=asked.prompt,
            base_id=self._base.base_id,
            adapter_sha256=asked.model.manifest.adapter_sha256,
            queue_ms=outcome.queue_ms,
            denoise_ms=outcome.denoise_ms,
        )

    def _record(self, name: str, values: dict[str, float]) -> None:
        metrics.record(self._base.base_id, name, values)


def _answer(future: Future[Generation], outcome: Generation | Exception) -> None:
    """Hands on what became of a request, unless nobody waits any more."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
