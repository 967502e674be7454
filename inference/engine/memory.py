"""Recognises that memory has run out, however torch says so."""

from __future__ import annotations

from typing import Final

import torch

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
