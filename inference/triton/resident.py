"""The resident model ``base``: Triton's side of the engine.

Triton's Python backend makes one ``TritonPythonModel``, in a process of its own, and calls it.
Tensors cross as DLPack: the stubs of some releases of Triton misread arrays of numpy 2.
"""

from __future__ import annotations

import json
import threading
from typing import Any, Final

import torch
import triton_python_backend_utils as pb_utils
from pydantic import ValidationError
from torch.utils import dlpack

from inference.capture import open_capture
from inference.logs import log, set_up
from inference.opening import open_engine
from inference.settings import Settings, TritonSettings
from inference.triton.desk import Call, Desk
from inference.triton.door import Door
from inference.triton.lifeline import Held
from inference.triton.words import in_words
from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

Message = Any
"""A request or a response; Triton has no types."""

_LOOK_EVERY_S: Final = 1.0
_LAST_WORDS_S: Final = 2.0


class TritonPythonModel:
    """The engine as a Triton model; decoupled, so that it never holds Triton up."""

    def initialize(self, _args: dict[str, str]) -> None:
        """Loads the base and opens the door.

        Raises:
            TritonModelException: If the base or the settings are unsound; Triton then ends.
        """
        set_up()
        self._ended = threading.Event()
        try:
            settings = Settings()
            opened = open_engine(settings)
            bucket = settings.capture_bucket
            base_id = opened.engine.base.base_id
            capture = open_capture(bucket, base_id) if bucket else None
            self._desk = Desk(opened.engine, settings.models_root, capture)
            path = TritonSettings().socket
            self._lifeline = Held(path)
            self._lifeline.when_time_is_called(self._desk.close)
            self._door = Door(path, self._desk.carry_out, self._lifeline.cut)
        except ValidationError as error:
            raise _not_started("INVALID_INPUT", explain(error)) from error
        except LimnerError as error:
            raise _not_started(error.code, error.message) from error
        except OSError as error:
            raise _not_started("INVALID_INPUT", f"socket: {error.strerror}") from error
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        # Torch was imported with this module, before anything could be measured.
        log("ready", {name: fact for name, fact in opened.facts.items() if name != "import_s"})

    def execute(self, requests: list[Message]) -> None:
        """Begins each drawing; its answer is sent when it is there."""
        for request in requests:
            self._desk.invoke(_call(request), _Sender(request))

    def _watch(self) -> None:
        """When nothing can be drawn or answered any more, has ``serve`` end the container.

        Triton's /ping would not tell, so nobody would start it again. Whoever can be answered is,
        and what is captured is written, before.
        """
        while not self._ended.wait(_LOOK_EVERY_S):
            if not self._desk.is_sound:
                log("nothing can be drawn any more", {})
                self._desk.close()
                # What was sent has yet to pass through Triton, which is killed with us.
                self._ended.wait(_LAST_WORDS_S)
                self._lifeline.cut()
                return

    def finalize(self) -> None:
        """Ends what is running, answers it, writes what is captured, and closes the door."""
        self._ended.set()
        self._desk.close()
        self._door.close()
        self._lifeline.say_goodbye()
        log("stopped", {})


class _Sender:
    """Sends the one answer of a request, from whichever thread has it."""

    def __init__(self, request: Message) -> None:
        self._sender = request.get_response_sender()

    def __call__(self, answer: bytes | LimnerError) -> None:
        if isinstance(answer, LimnerError):
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(in_words(answer)))
        else:
            content = torch.frombuffer(bytearray(answer), dtype=torch.uint8)
            tensor = pb_utils.Tensor.from_dlpack("response", content)
            response = pb_utils.InferenceResponse([tensor])
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _call(request: Message) -> Call:
    tensor = pb_utils.get_input_tensor_by_name(request, "request")
    body = dlpack.from_dlpack(tensor.to_dlpack()).numpy().tobytes()
    return Call(body=body, **json.loads(request.parameters()))


def _not_started(code: str, reason: str) -> Exception:
    log("not started", {"code": code, "reason": reason})
    error: Exception = pb_utils.TritonModelException(f"{code}: {reason}")
    return error
