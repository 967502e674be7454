"""The engine: load, unload, and generate, with one base and one thread that draws.

All generations run on one thread, one after the other: the UNet's selection has one writer, and a
GPU gains nothing from two. Shells submit and wait; the queue between is where requests of several
users will be gathered into one batch.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from inference.engine.base import ResidentBase
from inference.engine.denoise import Pixels, draw
from inference.engine.reader import Adapter, read_adapter
from inference.engine.slots import Slots
from limner.contracts.artifact import Manifest
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

# InvokeEndpoint gives up after 60 s (SageMaker developer guide), so nobody waits for an answer
# to a request that is older; whoever is behind it in the queue does.
MAX_ANSWER_S: Final = 60.0
# SageMaker gives up on an unload after 360 s; Triton waits up to 350 s, and so do we.
UNLOAD_TIMEOUT_S: Final = 350.0

TOKEN: Final = "{token}"  # noqa: S105 (a word in prompts, no secret)


@dataclass(frozen=True)
class LoadedModel:
    """A model in a slot.

    Attributes:
        name: The platform's opaque name of it.
        folder: Where it was read from.
        adapter: Its weights.
        load_ms: Milliseconds from folder to slot.
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
class Generation:
    """What was drawn.

    Attributes:
        pixels: ``[images, height, width, 3]``, 0 to 255.
        seeds: The seed of each image.
        prompt: The prompt as it was drawn.
        base_id: The base.
        adapter_sha256: The manifest's hash of the adapter.
        queue_ms: Milliseconds between submission and start.
        denoise_ms: Milliseconds in the text encoder, the denoising loop and the decoder.
    """

    pixels: Pixels
    seeds: tuple[int, ...]
    prompt: str
    base_id: str
    adapter_sha256: str
    queue_ms: float
    denoise_ms: float


class Engine:
    """One resident base and the adapters in its slots; safe to use from any thread.

    Args:
        base: The base; from now on only the engine may run its UNet.
        max_models: Number of slots.
        max_rank: Highest rank that is loaded.
    """

    def __init__(self, base: ResidentBase, *, max_models: int, max_rank: int) -> None:
        self._base = base
        self._max_rank = max_rank
        self._slots: Slots[LoadedModel] = Slots(max_models)
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw")

    def load(self, name: str, folder: Path) -> LoadedModel:
        """Checks an artifact and copies its adapter into a slot.

        Raises:
            LimnerError: ``MODEL_ALREADY_LOADED``, ``OUT_OF_MEMORY``, ``ARTIFACT_INVALID`` or
                ``ARTIFACT_WRONG_BASE``.
        """
        self._slots.reserve(name)
        started = time.perf_counter()
        filled = False
        try:
            adapter = read_adapter(folder, self._base, self._max_rank)
            model = LoadedModel(name, folder, adapter, _ms_since(started))
            self._slots.fill(name, model)
            filled = True
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise LimnerError("OUT_OF_MEMORY") from error
        finally:
            if not filled:
                self._slots.cancel(name)
        return model

    def unload(self, name: str) -> None:
        """Frees a model's slot after its running generations have ended.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``, or ``DEADLINE_EXCEEDED``.
        """
        self._slots.unload(name, UNLOAD_TIMEOUT_S)

    def get(self, name: str) -> LoadedModel:
        """A loaded model.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        return self._slots.get(name)

    def models(self) -> list[LoadedModel]:
        """All loaded models, sorted by name."""
        return [model for _, model in self._slots.items()]

    def submit(self, name: str, request: GenerateRequest) -> Future[Generation]:
        """Queues a generation; the model stays loaded until it has ended.

        Args:
            name: A loaded model.
            request: What to draw.

        Returns:
            A future. Its ``LimnerError`` may be ``INVALID_INPUT``, ``DEADLINE_EXCEEDED``,
            ``OUT_OF_MEMORY`` or ``GENERATION_FAILED``.

        Raises:
            LimnerError: ``MODEL_NOT_LOADED``.
        """
        model = self._slots.hold(name)
        try:
            future = self._thread.submit(self._generate, model, request, time.perf_counter())
        except RuntimeError as error:
            self._slots.release(name)
            raise LimnerError("GENERATION_FAILED", "The server is shutting down.") from error
        future.add_done_callback(lambda _: self._slots.release(name))
        return future

    def close(self) -> None:
        """Ends the running generation at its next step, and takes no more."""
        self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _generate(
        self, model: LoadedModel, request: GenerateRequest, submitted: float
    ) -> Generation:
        queue_ms = _ms_since(submitted)

        def go_on() -> None:
            if self._stopping.is_set():
                raise LimnerError("GENERATION_FAILED", "The server is shutting down.")
            if _ms_since(submitted) > MAX_ANSWER_S * 1000:
                raise LimnerError(
                    "DEADLINE_EXCEEDED",
                    f"The images were not drawn {MAX_ANSWER_S:g} s after they were asked for;"
                    " ask for fewer or smaller images, or fewer steps.",
                )

        go_on()
        manifest = model.manifest
        # Not str.format: the prompt is the user's, and may hold any braces.
        prompt = request.prompt.replace(TOKEN, manifest.subject_phrase)
        started = time.perf_counter()
        self._base.selection.factors = model.adapter.factors
        try:
            pixels = draw(self._base, prompt, request, go_on)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise LimnerError("OUT_OF_MEMORY") from error
        finally:
            # An unloaded adapter's memory must not be kept alive by the selection.
            self._base.selection.factors = None
        return Generation(
            pixels=pixels,
            seeds=tuple(range(request.seed, request.seed + request.images)),
            prompt=prompt,
            base_id=self._base.base_id,
            adapter_sha256=manifest.adapter_sha256,
            queue_ms=queue_ms,
            denoise_ms=_ms_since(started),
        )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
