"""Names in the metrics that a container writes to its log, and that ``limner metrics`` reads."""

from __future__ import annotations

import hashlib
from typing import Final

EVENT: Final = "metrics"
"""The event of a line of metrics."""
INVOKE_EVENT: Final = "invoke"
"""The event of a request's own line."""
BASE: Final = "Base"
"""The only dimension."""
MODEL: Final = "Model"
"""Fingerprint of the platform's name of the model."""

LOAD_MS: Final = "LoadMs"
"""From the artifact's folder to the host's memory."""
QUEUE_MS: Final = "QueueMs"
"""From submission to start."""
DENOISE_MS: Final = "DenoiseMs"
"""Text encoder, denoising loop, decoder."""
SLOT_HITS: Final = "SlotHits"
"""Generations whose adapter was in a slot already."""
SLOT_MISSES: Final = "SlotMisses"
"""Generations whose adapter had to be copied into one."""
EVICTIONS: Final = "Evictions"
"""Adapters that had to leave their slots for others."""
RESIDENT_BYTES: Final = "ResidentBytes"
"""Adapters in the host's memory, and all slots on the device."""


def fingerprint(text: str) -> str:
    """A short hash, to recognise a name in logs without reading it."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
