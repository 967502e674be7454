"""What ``base`` does when it is asked, whoever carries the question: load, unload, draw.

Nothing here waits for a drawing: requests of several users must be in flight together, so that the
engine can draw them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from inference.answers import Form, encode_answer
from inference.bodies import model_folder, parse_body
from inference.capture import Capture
from inference.engine.engine import Engine, Generation
from inference.logs import fingerprint, log
from inference.reports import Facts, named, report, stopped
from inference.triton.shells import check_shell, remove_bytecode
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from limner.contracts.triton import RESIDENT

# A PNG takes milliseconds and the interpreter's lock for few of them.
_ENCODERS: Final = 2

T = TypeVar("T")
Pending = Future[Generation]
Reply = Callable[[bytes | LimnerError], None]


class DoorOrder(BaseModel):
    """What a thin model asks for when it comes or goes.

    Attributes:
        operation: ``load`` or ``unload``.
        folder: Its own folder, the unpacked artifact.
        target: The platform's TargetModel; only its fingerprint is written anywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: Literal["load", "unload"]
    folder: str = Field(max_length=4096)
    target: str = Field(default="", max_length=4096)


@dataclass(frozen=True)
class Call:
    """A generation that a thin model passes on.

    Attributes:
        folder: The thin model's folder.
        body: A ``GenerateRequest`` as JSON.
        accept: The media type that the caller would like.
        target: The platform's TargetModel.
    """

    folder: str
    body: bytes
    accept: str = ""
    target: str = ""


@dataclass(frozen=True)
class _Begun:
    """A generation that is being drawn, and what is known of it meanwhile."""

    call: Call
    request: GenerateRequest
    form: Form
    pending: Pending


class Desk:
    """An engine's questions and answers; safe to use from any thread.

    Args:
        engine: The engine; closed by ``close``.
        models_root: Folder under which every model must lie.
        capture: Keeps what is drawn; closed by ``close``. None for nothing.
    """

    def __init__(self, engine: Engine, models_root: Path, capture: Capture | None = None) -> None:
        self._engine = engine
        self._models_root = models_root
        self._capture = capture
        self._closing = threading.Lock()
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode")

    @property
    def is_sound(self) -> bool:
        """Whether anything can be drawn and answered."""
        return self._engine.is_sound

    def carry_out(self, order: DoorOrder) -> LimnerError | None:
        """Loads or unloads a model; returns what was wrong, if anything was."""
        started = time.perf_counter()
        facts: Facts = {"target": fingerprint(order.target)}
        outcome = _outcome(order.operation, facts, lambda: self._carry_out(order, facts))
        report(order.operation, facts, outcome, started)
        return outcome

    def invoke(self, call: Call, reply: Reply) -> None:
        """Has a generation drawn; returns at once.

        Args:
            call: What to draw, with which model.
            reply: Called from any thread with the answer's body or an error: once, and a second
                time if it has raised.
        """
        started = time.perf_counter()
        facts: Facts = {"target": fingerprint(call.target)}

        def finish(answer: bytes | LimnerError) -> None:
            sent = _sent(reply, answer, facts)
            report("invoke", facts, sent if isinstance(sent, LimnerError) else None, started)

        def encode(begun: _Begun) -> None:
            finish(_outcome("invoke", facts, lambda: self._encoded(begun, facts)))

        begun = _outcome("invoke", facts, lambda: self._begin(call, facts))
        if isinstance(begun, LimnerError):
            finish(begun)
            return

        def hand_over(_: Pending) -> None:
            try:
                # This is the thread that draws, which has better things to do than PNGs.
                self._encoders.submit(encode, begun)
            except RuntimeError:  # the desk was closed meanwhile, or threads have run out
                encode(begun)

        begun.pending.add_done_callback(hand_over)

    def close(self) -> None:
        """Ends what is running, answers it, takes no more, and writes what is captured.

        May be called twice, and by two threads at once: both return when all of it is done.
        """
        with self._closing:
            self._engine.close()
            self._encoders.shutdown(wait=True)
            capture, self._capture = self._capture, None  # nobody encodes any more
            if capture:
                capture.close()

    def _carry_out(self, order: DoorOrder, facts: Facts) -> None:
        if order.operation == "unload":
            # By its name alone: whether its folder is still there is nothing to who leaves.
            facts["model"] = name = self._name(Path(order.folder))
            self._engine.unload(name)
            return
        if order.target == RESIDENT:
            # Triton would put it in our place.
            raise LimnerError("INVALID_INPUT", f"No model may be called {RESIDENT!r}.")
        folder = model_folder(order.folder, self._models_root)
        facts["model"] = name = self._name(folder)
        remove_bytecode(folder)
        check_shell(folder)
        model = self._engine.load(name, folder)
        facts["load_ms"] = round(model.load_ms, 2)

    def _begin(self, call: Call, facts: Facts) -> _Begun:
        facts["model"] = name = self._name(Path(call.folder))
        request = parse_body(call.body, GenerateRequest)
        facts.update(images=request.images, steps=request.steps)
        form = Form.of(call.accept, request)
        return _Begun(call, request, form, self._engine.submit(name, request))

    def _encoded(self, begun: _Begun, facts: Facts) -> bytes:
        generation = begun.pending.result()
        facts["queue_ms"] = round(generation.queue_ms, 2)
        facts["denoise_ms"] = round(generation.denoise_ms, 2)
        answer = encode_answer(generation, begun.form)
        if capture := self._capture:  # ``close`` takes it away
            target = begun.call.target
            facts["capture"] = capture.offer(target, begun.request, generation, answer)
        return answer.content

    def _name(self, folder: Path) -> str:
        """``<hash>/model``: the platform's own name of the model, and a word that says nothing."""
        if not folder.is_relative_to(self._models_root):
            raise LimnerError("MODEL_NOT_LOADED")
        return folder.relative_to(self._models_root).as_posix()


def _sent(reply: Reply, answer: bytes | LimnerError, facts: Facts) -> bytes | LimnerError:
    """Sends an answer, or that there is none; returns what was sent.

    A request without an answer never ends, and Triton waits for it as long as it may.
    """
    for attempt in (answer, LimnerError("INTERNAL")):
        answer = attempt
        try:
            reply(attempt)
            break
        except Exception:  # noqa: BLE001 (the process boundary: Triton may have no memory for it)
            log("answer not sent", facts, failed=True)
    return answer


def _outcome(event: str, facts: Facts, work: Callable[[], T]) -> T | LimnerError:
    """What the work returns, or the error that it ends with."""
    try:
        return work()
    except CancelledError:
        return stopped()
    except Exception as raised:  # noqa: BLE001 (the process boundary: an answer, and a line)
        return named(event, facts, raised)
