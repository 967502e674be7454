"""How the figures of serving are taken: clocks, rounds in a drawn order, medians, lines of JSON."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

Contestant = Callable[[int], None]
"""Takes its measurements of one round, whose number it is told."""


def say(figure: str, **values: object) -> None:
    """Prints a figure."""
    print(json.dumps({"figure": figure, **values}), flush=True)


def synchronised(device: torch.device) -> Callable[[], float]:
    """A clock that first waits for the device, in seconds."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class Measured:
    """CPU and wall milliseconds of some variants, round by round.

    Args:
        device: Where the work is done. On a CPU the figure is CPU time; on a GPU, which works
            while the CPU waits, it is wall time between two synchronisations.

    Attributes:
        cpu: CPU milliseconds of each variant.
        wall: Wall milliseconds of each variant.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._now = device, synchronised(device)
        self._on_gpu = device.type == "cuda"
        self._peaks_mb: dict[str, tuple[float, float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    @property
    def figures(self) -> dict[str, list[float]]:
        """The milliseconds that count on this device."""
        return self.wall if self._on_gpu else self.cpu

    def time(self, variant: str, work: Callable[[], object], *, units: int = 1) -> None:
        """Adds one measurement of a variant, in milliseconds a unit."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        lay = self._memory_mb()[0]
        wall, cpu = self._now(), time.process_time()
        work()
        # The clock that waits for the device comes first, so that CPU time counts the same work.
        wall_s = self._now() - wall
        self.cpu.setdefault(variant, []).append((time.process_time() - cpu) * 1000 / units)
        self.wall.setdefault(variant, []).append(wall_s * 1000 / units)
        peak = self._memory_mb()[1]
        most, above = self._peaks_mb.get(variant, (0.0, 0.0))
        self._peaks_mb[variant] = (max(most, peak), max(above, peak - lay))

    def add(self, variant: str, parts: Sequence[str]) -> None:
        """Makes a variant of others that were measured in the same rounds, one after another."""
        for times in (self.cpu, self.wall):
            times[variant] = [sum(each) for each in zip(*(times[p] for p in parts), strict=True)]

    def forget_warm_up(self) -> None:
        """Drops the first round."""
        for found in (*self.cpu.values(), *self.wall.values()):
            del found[0]

    def in_rounds(self, contestants: Mapping[str, Contestant], rounds: int) -> None:
        """Lets all take their measurements in each round, in an order that is drawn for each.

        Whoever always came after the same other one would find the CPU's caches as that one left
        them. The order comes from a fixed seed, so two runs have the same one.

        Args:
            contestants: By name.
            rounds: How many; one more, which comes first, is dropped.
        """
        draw = random.Random(0)  # noqa: S311 (not a secret)
        order = list(contestants)
        for index in range(rounds + 1):
            draw.shuffle(order)
            for name in order:
                contestants[name](index)
            if not index:
                self.forget_warm_up()

    def say(
        self,
        figure: str,
        over: Sequence[str],
        *,
        compared: Collection[str] | None = None,
        **values: object,
    ) -> None:
        """Prints all variants, and how many times faster than some of them each is.

        Args:
            figure: Its name.
            over: Those that others are compared with.
            compared: Those that are; by default all.
            values: What else the lines tell.
        """
        middle = {variant: statistics.median(found) for variant, found in self.figures.items()}
        for variant, found in sorted(self.figures.items()):
            say(
                figure,
                **values,
                variant=variant,
                clock="wall" if self._on_gpu else "cpu",
                cpu_ms=round(statistics.median(self.cpu[variant]), 3),
                wall_ms=round(statistics.median(self.wall[variant]), 3),
                spread=[round(min(found), 3), round(max(found), 3)],
                rounds=len(found),
                per_second=round(1000 / middle[variant], 2),
                times={
                    other: round(middle[other] / middle[variant], 2)
                    for other in over
                    if other in middle and (compared is None or variant in compared)
                },
                **self._memory(variant),
            )

    def _memory(self, variant: str) -> dict[str, float]:
        if not self._on_gpu or variant not in self._peaks_mb:
            return {}
        peak, above = self._peaks_mb[variant]
        return {"device_peak_mb": round(peak, 1), "above_resident_mb": round(above, 1)}

    def _memory_mb(self) -> tuple[float, float]:
        """What lies on the device, and the most that lay there; a CPU is not asked."""
        if not self._on_gpu:
            return 0.0, 0.0
        lies = torch.cuda.memory_allocated(self._device)
        return lies / 1e6, torch.cuda.max_memory_allocated(self._device) / 1e6
