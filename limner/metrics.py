"""Figures per model from the lines of a container's log; pure, wherever the lines come from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from limner.contracts import metrics as names
from limner.contracts.metrics import fingerprint

_FIGURES: Final = (
    names.LOAD_MS,
    names.QUEUE_MS,
    names.DENOISE_MS,
    names.SLOT_HITS,
    names.SLOT_MISSES,
    names.EVICTIONS,
    names.RESIDENT_BYTES,
)


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one model, or of all.

    Attributes:
        model: Fingerprint of the platform's name of it; ``total`` for all.
        generations: Images drawn are one generation a request.
        hit_rate: Share of the generations whose adapter was in a slot; None without generations.
        loads: Loads into the host's memory.
        load_ms_p50: Of the loads; this and the following are None where there is none.
        queue_ms_p50: From submission to start.
        queue_ms_p95: The same.
        denoise_ms_p50: Of drawing.
        denoise_ms_p95: The same.
        evictions: Adapters that had to leave their slots for this model's.
        resident_bytes: Of the whole container, as its last line about the model says.
    """

    model: str
    generations: int
    hit_rate: float | None
    loads: int
    load_ms_p50: float | None
    queue_ms_p50: float | None
    queue_ms_p95: float | None
    denoise_ms_p50: float | None
    denoise_ms_p95: float | None
    evictions: int
    resident_bytes: int | None


@dataclass(slots=True)
class _Sums:
    series: dict[str, list[float]] = field(
        default_factory=lambda: {figure: [] for figure in _FIGURES}
    )
    resident_at: float = -1
    resident: int | None = None

    def add(self, entry: dict[str, Any], at_ms: float) -> None:
        for figure, values in self.series.items():
            value = entry.get(figure)
            if isinstance(value, int | float):
                values.append(float(value))
        resident = entry.get(names.RESIDENT_BYTES)
        if isinstance(resident, int | float) and at_ms >= self.resident_at:
            self.resident_at, self.resident = at_ms, int(resident)

    def row(self, model: str) -> Row:
        hits = sum(self.series[names.SLOT_HITS])
        placed = hits + sum(self.series[names.SLOT_MISSES])
        queue, denoise = self.series[names.QUEUE_MS], self.series[names.DENOISE_MS]
        loads = self.series[names.LOAD_MS]
        return Row(
            model=model,
            generations=len(denoise),
            hit_rate=hits / placed if placed else None,
            loads=len(loads),
            load_ms_p50=percentile(loads, 50),
            queue_ms_p50=percentile(queue, 50),
            queue_ms_p95=percentile(queue, 95),
            denoise_ms_p50=percentile(denoise, 50),
            denoise_ms_p95=percentile(denoise, 95),
            evictions=int(sum(self.series[names.EVICTIONS])),
            resident_bytes=self.resident,
        )


def summarize(
    lines: Iterable[str], *, since_ms: float = 0, targets: Collection[str] | None = None
) -> list[Row]:
    """The rows of all models, most generations first, and their total at the end.

    Args:
        lines: Of the log, in any order; what is not a line of metrics is passed over.
        since_ms: Milliseconds since 1970; older metrics are left out.
        targets: TargetModels to show alone. Requests' lines tell which models those are.

    Returns:
        Nothing at all where there are no metrics.
    """
    wanted = None if targets is None else {fingerprint(target) for target in targets}
    found: dict[str, list[tuple[dict[str, Any], float]]] = {}
    of_targets: set[str] = set()
    for line in lines:
        entry = _parsed(line)
        match entry.get("event"):
            case names.EVENT if isinstance(entry.get(names.MODEL), str):
                at_ms = _time_of(entry)
                if at_ms >= since_ms:
                    found.setdefault(entry[names.MODEL], []).append((entry, at_ms))
            case names.INVOKE_EVENT if wanted and entry.get("target") in wanted:
                if isinstance(entry.get("model"), str):
                    of_targets.add(fingerprint(entry["model"]))
    total, rows = _Sums(), []
    for model, entries in found.items():
        if wanted is not None and model not in of_targets:
            continue
        sums = _Sums()
        for entry, at_ms in entries:
            sums.add(entry, at_ms)
            total.add(entry, at_ms)
        rows.append(sums.row(model))
    rows.sort(key=lambda row: (-row.generations, row.model))
    return [*rows, total.row("total")] if rows else []


def percentile(values: Collection[float], percent: int) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(rank, 1) - 1]


def _parsed(line: str) -> dict[str, Any]:
    # A log has other lines too: of libraries, and one that is being written just now.
    if '"event"' not in line:
        return {}
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _time_of(entry: dict[str, Any]) -> float:
    directive = entry.get("_aws")
    at_ms = directive.get("Timestamp") if isinstance(directive, dict) else None
    return float(at_ms) if isinstance(at_ms, int | float) else 0.0
