"""Memory: what is kept of it between steps, and that it has run out, however torch says so."""

from __future__ import annotations

import ctypes
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

# mallopt(3), and the largest threshold that every glibc takes.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT: Final = 32 << 20
_KEPT: Final = 256 << 20


def keep_freed_memory() -> bool:
    """Has glibc keep up to 256 MB of freed memory for the next step.

    By default it learns from what a process has freed which sizes it gives back to the system each
    time. Where that turns out badly, a step's activations are new pages in each step, which the
    system must fill with zeros: an eighth of the time of a pass of 32 rows on a CPU, in some
    processes (``docs/serving.md``).

    Returns:
        Whether it was told; not every system has glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT) and mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT))


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
