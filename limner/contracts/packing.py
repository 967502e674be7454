"""How long a fine-tune takes, and which instance of a job does which. Pure, without libraries."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_BOUND_LIMIT: Final = 4 / 3


@dataclass(frozen=True, slots=True)
class Pace:
    """Coefficients of the predicted duration of one fine-tune, in seconds.

    The defaults are those of the tiny base on two CPU cores; a stage on other machines brings its
    own (``LIMNER_PACE_…``).

    Attributes:
        fixed_s: Whatever the request: latents of the prompt, first images, the artifact.
        step_s: Each optimizer step.
        photo_s: Each photo: decoding, crops, latents.
    """

    fixed_s: float = 10.0
    step_s: float = 0.25
    photo_s: float = 0.5

    def predict_s(self, steps: int, photos: int) -> float:
        """Seconds that a fine-tune is expected to take."""
        return self.fixed_s + self.step_s * steps + self.photo_s * photos


@dataclass(frozen=True, slots=True)
class Packing:
    """Which instance does which task.

    Attributes:
        instances: Position of the instance of each task, in the order of the durations given.
        makespan_s: When the last instance is done.
        lower_bound_s: No packing can be faster: the longest task, or all of the work shared
            evenly.
        bound: Longest-first takes at most this many times the best possible makespan.
    """

    instances: tuple[int, ...]
    makespan_s: float
    lower_bound_s: float
    bound: float


def pack(durations_s: Sequence[float], instances: int) -> Packing:
    """Packs tasks on instances, longest first, each on the instance that is free first.

    Its makespan is at most 4/3 - 1/(3K) times the best one on K instances (R. L. Graham, "Bounds
    on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969).

    Args:
        durations_s: Predicted seconds of each task; at least one.
        instances: Number of instances, 1 or more.

    Raises:
        ValueError: If there is nothing to pack, or nothing to pack it on.
    """
    if not durations_s or instances < 1:
        raise ValueError("pack needs a task and an instance")
    free = [(0.0, instance) for instance in range(instances)]
    chosen = [0] * len(durations_s)
    for task in sorted(range(len(durations_s)), key=lambda task: (-durations_s[task], task)):
        busy_s, instance = heapq.heappop(free)
        chosen[task] = instance
        heapq.heappush(free, (busy_s + durations_s[task], instance))
    return Packing(
        instances=tuple(chosen),
        makespan_s=max(busy_s for busy_s, _ in free),
        lower_bound_s=max(max(durations_s), sum(durations_s) / instances),
        bound=_BOUND_LIMIT - 1 / (3 * instances),
    )
