"""How long a fine-tune takes, and which instance of a job does which. Pure, without libraries."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

_BOUND_LIMIT: Final = 4 / 3
# What was configured weighs as much as so many past fine-tunes of this many steps and photos.
_PRIOR_TASKS: Final = 4
_PRIOR_FEATURES: Final = (1.0, 500.0, 10.0)


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
class PastRun:
    """A fine-tune that has ended.

    Attributes:
        steps: Optimizer steps.
        photos: Photos.
        seconds: What it cost its instance. Fine-tunes that shared a pass share its seconds, so
            that an instance's seconds are the sum over its fine-tunes, as ``pack`` takes it.
    """

    steps: int
    photos: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PastRuns:
    """Sums over past fine-tunes: all that a least-squares fit has to know of them.

    Each is a sum over the fine-tunes of a product of what it is named after, so two of these are
    added field by field, in any order.
    """

    count: float = 0
    steps: float = 0
    photos: float = 0
    steps_steps: float = 0
    steps_photos: float = 0
    photos_photos: float = 0
    seconds: float = 0
    steps_seconds: float = 0
    photos_seconds: float = 0

    @classmethod
    def of(cls, runs: Iterable[PastRun]) -> PastRuns:
        """The sums over these fine-tunes."""
        rows = [
            (
                *(1, run.steps, run.photos),
                *(run.steps**2, run.steps * run.photos, run.photos**2),
                *(run.seconds, run.steps * run.seconds, run.photos * run.seconds),
            )
            for run in runs
        ]
        return cls(*map(sum, zip(*rows, strict=True)))


def fit(runs: PastRuns, prior: Pace) -> Pace:
    """The pace that explains past fine-tunes best, drawn towards what was configured.

    Least squares with a ridge around ``prior``, no coefficient below 0. A ridge, because users
    mostly take the same number of steps: fixed and step seconds cannot be told apart then, and
    the configured pace shares them out. The problem is convex and has three unknowns, so the best
    feasible one of the eight sets of coefficients above 0 is the minimum.

    Args:
        runs: Past fine-tunes; without any, the result is ``prior``.
        prior: The configured pace.
    """
    # In units of the features all numbers are of one size, which keeps the elimination exact.
    one, steps, photos = _PRIOR_FEATURES
    matrix = [
        [runs.count, runs.steps / steps, runs.photos / photos],
        [runs.steps / steps, runs.steps_steps / steps**2, runs.steps_photos / (steps * photos)],
        [
            runs.photos / photos,
            runs.steps_photos / (steps * photos),
            runs.photos_photos / photos**2,
        ],
    ]
    vector = [runs.seconds, runs.steps_seconds / steps, runs.photos_seconds / photos]
    configured = (prior.fixed_s * one, prior.step_s * steps, prior.photo_s * photos)
    for index, value in enumerate(configured):
        matrix[index][index] += _PRIOR_TASKS
        vector[index] += _PRIOR_TASKS * value
    candidates = (
        _solve(matrix, vector, chosen)
        for size in range(4)
        for chosen in combinations(range(3), size)
    )
    fixed_s, all_steps_s, all_photos_s = min(
        (found for found in candidates if min(found) >= 0),
        key=lambda found: _cost(matrix, vector, found),
    )
    return Pace(fixed_s=fixed_s / one, step_s=all_steps_s / steps, photo_s=all_photos_s / photos)


def _solve(
    matrix: Sequence[Sequence[float]], vector: Sequence[float], chosen: Sequence[int]
) -> tuple[float, ...]:
    """Solves a positive definite system in some of its unknowns; the others are 0."""
    rows = [[*(matrix[row][column] for column in chosen), vector[row]] for row in chosen]
    for index, pivot in enumerate(rows):
        for row in rows[index + 1 :]:
            factor = row[index] / pivot[index]
            for column in range(index, len(row)):
                row[column] -= factor * pivot[column]
    solution: dict[int, float] = {}
    for index in reversed(range(len(rows))):
        *factors, right = rows[index]
        known = sum(factors[other] * solution[other] for other in range(index + 1, len(factors)))
        solution[index] = (right - known) / factors[index]
    values = {unknown: solution[index] for index, unknown in enumerate(chosen)}
    return tuple(values.get(unknown, 0.0) for unknown in range(len(vector)))


def _cost(
    matrix: Sequence[Sequence[float]], vector: Sequence[float], found: Sequence[float]
) -> float:
    """Half of the sum of squares, but for a constant."""
    products = (sum(a * b for a, b in zip(row, found, strict=True)) for row in matrix)
    return sum(
        value * (product / 2 - right)
        for value, product, right in zip(found, products, vector, strict=True)
    )


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
