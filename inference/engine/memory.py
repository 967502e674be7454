"""Recognises that memory has run out, however torch says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from limner.contracts.errors import LimnerError

# The allocators of the CPU and of pinned memory, and CUDA's libraries, raise a bare RuntimeError
# (torch 2.13: c10/core/impl/alloc_cpu.cpp, "DefaultCPUAllocator: can't allocate memory"; CUDA's
# host allocator, "CUDA error: out of memory").
_WORDS: Final = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the host's or the device's memory has run out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns a lack of memory in its block into ``OUT_OF_MEMORY``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LimnerError("OUT_OF_MEMORY") from error
