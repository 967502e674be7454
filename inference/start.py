"""From settings to a running engine; what both shells do first."""

from __future__ import annotations

import torch

from inference.engine.base import load_base
from inference.engine.engine import Engine
from inference.engine.safety import load_check
from inference.settings import Settings


def start_engine(settings: Settings) -> Engine:
    """Loads the base and starts the engine on it.

    Raises:
        LimnerError: ``BASE_INVALID``; ``INVALID_INPUT``, if there is no such content check.
    """
    # Before the base, which takes long to load: a wrong name should be told at once.
    safety = load_check(settings.safety) if settings.safety else None
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Engine(
        load_base(settings.base_dir, device),
        max_models=settings.max_models,
        max_rank=settings.max_rank,
        adapter_bytes=settings.adapter_bytes,
        slot_bytes=settings.slot_bytes,
        max_rows=settings.max_rows,
        max_queue=settings.max_queue,
        safety=safety,
    )
