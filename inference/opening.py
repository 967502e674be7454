"""From settings to an engine with its base in memory: what each shell begins with."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.settings import Settings
from limner.contracts.base import read_card

if TYPE_CHECKING:
    from inference.engine.engine import Engine


@dataclass(frozen=True)
class Opened:
    """An engine, and what its log line ``ready`` says.

    Attributes:
        engine: Ready to load models.
        facts: Base, device, seconds and memory that the start took.
    """

    engine: Engine
    facts: dict[str, object]


def open_engine(settings: Settings) -> Opened:
    """Loads the base and puts an engine over it.

    Raises:
        LimnerError: ``BASE_INVALID``; ``INVALID_INPUT``, if there is no such content check.
    """
    # The base is looked at before torch is imported, which takes seconds.
    read_card(settings.base_dir)
    started = time.perf_counter()
    import torch

    from inference.engine.base import load_base
    from inference.engine.engine import Engine
    from inference.engine.memory import keep_freed_memory
    from inference.engine.safety import load_check

    # Before the base, which takes long to load: a wrong name should be told at once.
    safety = load_check(settings.safety) if settings.safety else None
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    imported = time.perf_counter()
    keep_freed_memory()
    base = load_base(settings.base_dir, device)
    return Opened(
        Engine(
            base,
            max_models=settings.max_models,
            max_rank=settings.max_rank,
            adapter_bytes=settings.adapter_bytes,
            slot_bytes=settings.slot_bytes,
            max_rows=settings.max_rows,
            max_queue=settings.max_queue,
            max_request_rows=settings.max_request_rows,
            safety=safety,
        ),
        {
            "base_id": base.base_id,
            "device": device,
            "import_s": round(imported - started, 2),
            "base_s": round(time.perf_counter() - imported, 2),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        },
    )
