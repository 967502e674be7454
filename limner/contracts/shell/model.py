"""The thin Triton model in every artifact: hands the adapter's folder and the request to `base`.

Byte-identical in all artifacts. The engine, the base and the adapters' slots live in the one
resident model `base`; this process holds a path and nothing else.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


def _call_base(operation: str, folder: str, body: str = "") -> str:
    message = json.dumps({"operation": operation, "folder": folder, "body": body}).encode()
    answer = pb_utils.InferenceRequest(
        model_name="base",
        requested_output_names=["response"],
        inputs=[pb_utils.Tensor("request", np.array([message], dtype=np.object_))],
    ).exec()
    if answer.has_error():
        # The text of an out-of-memory error must pass unchanged: Triton's SageMaker shell
        # recognises it by its words and answers 507, upon which SageMaker evicts a model.
        raise pb_utils.TritonModelException(answer.error().message())
    text: bytes = pb_utils.get_output_tensor_by_name(answer, "response").as_numpy()[0]
    return text.decode()


class TritonPythonModel:
    """One user's model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the adapter into a slot of `base`."""
        self.folder = str(Path(args["model_repository"]))
        _call_base("load", self.folder)

    def execute(self, requests: list[object]) -> list[object]:
        """Answers each request with the engine's JSON."""
        responses = []
        for request in requests:
            body = pb_utils.get_input_tensor_by_name(request, "request").as_numpy()[0].decode()
            text = _call_base("invoke", self.folder, body).encode()
            tensor = pb_utils.Tensor("response", np.array([text], dtype=np.object_))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses

    def finalize(self) -> None:
        """Frees the slot."""
        _call_base("unload", self.folder)
