"""The thin Triton model in every artifact: hands its folder and its requests to `base`.

Byte-identical in all artifacts. The engine, the base and the adapters' slots live in the one
resident model `base`; this process holds a path and nothing else. It imports nothing of Limner's:
an artifact outlives the release that made it.
"""

import json
import os
import socket
from typing import Any

import triton_python_backend_utils as pb_utils

# Triton waits 350 s for an unload, and SageMaker 360 s for a load.
PATIENCE_S = 350

Message = Any
"""A request or a response; Triton has no types."""


class TritonPythonModel:
    """One user's model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Has `base` load the adapter."""
        self.name = args["model_name"]
        self.folder = args["model_repository"]
        # Triton refuses BLS outside of `execute`, so loading and unloading have a door of their
        # own. It stays open: that is how `base` knows that this process lives.
        self.door = socket.socket(socket.AF_UNIX)
        self.door.settimeout(PATIENCE_S)
        self.door.connect(os.environ["LIMNER_TRITON_SOCKET"])
        self.answers = self.door.makefile()
        self.tell_base("load")

    def execute(self, requests: list[Message]) -> list[Message]:
        """Answers each request with what `base` answers."""
        return [self.ask_base(request) for request in requests]

    def finalize(self) -> None:
        """Has `base` free the slot."""
        self.tell_base("unload")
        self.door.close()

    def tell_base(self, operation: str) -> None:
        """Loads or unloads, and raises what `base` has against it."""
        order = {"operation": operation, "folder": self.folder, "target": self.name}
        self.door.sendall(json.dumps(order).encode() + b"\n")
        answer = self.answers.readline()
        if answer != "\n":
            # The text must pass unchanged: Triton's SageMaker routes recognise an error of memory
            # by its words and answer 507, upon which SageMaker unloads another model.
            raise pb_utils.TritonModelException(answer.strip() or "`base` has gone.")

    def ask_base(self, request: Message) -> Message:
        """One call of `base`, by BLS, and its one answer."""
        wishes = json.loads(request.parameters() or "{}")
        answers = pb_utils.InferenceRequest(
            model_name="base",
            requested_output_names=["response"],
            inputs=request.inputs(),
            parameters={
                "folder": self.folder,
                "target": self.name,
                "accept": str(wishes.get("accept", "")),
            },
        ).exec(decoupled=True)
        # The last answer of a decoupled model may be an empty one that only says it was the last.
        answer = next(item for item in list(answers) if item.has_error() or item.output_tensors())
        if answer.has_error():
            return pb_utils.InferenceResponse(error=answer.error())
        return pb_utils.InferenceResponse(answer.output_tensors())
