"""Errors as the words that Triton's SageMaker routes understand.

They know no codes of ours. They look for certain words anywhere in an error's text: with one of
them the answer is 507, upon which SageMaker unloads another model and tries again; else it is 400.
So an error must have such words if, and only if, memory has run out.
"""

from __future__ import annotations

import json
from typing import Final

from limner.contracts.errors import LimnerError

OUT_OF_MEMORY: Final = "CUDA out of memory: "
# What Triton looks for, case by case (its source, SageMakerMMECheckOOMError).
OUT_OF_MEMORY_WORDS: Final = (
    "CUDA out of memory",
    "CUDA_OUT_OF_MEMORY",
    "Out of memory",
    "Out Of Memory",
    "out of memory",
    "MemoryError",
    "OutOfMemory",
    "OOM",
    "Dst tensor is not initialized",
    "Src tensor is not initialized",
    "CNMEM_STATUS_OUT_OF_MEMORY",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "Failed to allocate memory",
    "failed to allocate memory",
    "No space left on device",
)


def in_words(error: LimnerError) -> str:
    """The error's JSON as Triton's text, marked if memory has run out.

    A detail that has one of the words by chance (a member named ``ROOM.txt`` has ``OOM``) is left
    out: it would have SageMaker unload the models of others. What Triton adds of its own is beyond
    us: of a load that has failed, the model's name (docs/serving-triton.md, "Errors").
    """
    text = json.dumps(error.to_dict())
    if error.code == "OUT_OF_MEMORY":
        return OUT_OF_MEMORY + text
    if any(word in text for word in OUT_OF_MEMORY_WORDS):
        text = json.dumps(LimnerError(error.code).to_dict())
    return text
