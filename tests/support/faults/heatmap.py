"""The fault matrix as a picture: a row for each state, a column for each fault. Deterministic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from tests.support.faults.cells import COLUMNS, Cell, Moment, Outcome, Result

COLOURS: Final = {
    Outcome.MENDED: "#2f9e6e",
    Outcome.NAMED: "#e3b341",
    Outcome.RULE: "#5b8def",
    Outcome.RECONCILED: "#8f6fd1",
    Outcome.BROKEN: "#d1434b",
}
_CELL_W: Final = 34
_CELL_H: Final = 17
_GAP: Final = 2
_LABELS: Final = 250
_HEAD: Final = 150
_MARGIN: Final = 16
_FONT: Final = "font-family='system-ui,-apple-system,Segoe UI,sans-serif'"


def draw(results: Sequence[Result], on_laptop: frozenset[Cell] = frozenset()) -> str:
    """Draws the results of all cells.

    Args:
        results: In the order of the published machines.
        on_laptop: Cells that were also played on the laptop; they get a dot.
    """
    rows = list(dict.fromkeys((r.cell.machine, r.cell.state) for r in results))
    machines = list(dict.fromkeys(machine for machine, _ in rows))
    by_cell = {result.cell: result for result in results}
    width = 2 * _MARGIN + _LABELS + len(COLUMNS) * _CELL_W + 2 * 8 + 24
    height = _HEAD + len(rows) * _CELL_H + len(machines) * 30 + 90
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' {_FONT} font-size='11'>",
        f"<rect width='{width}' height='{height}' rx='8' fill='#ffffff'/>",
        _text(_MARGIN, 28, f"Fault matrix: {len(results)} cells", size=16, weight=600),
        *_heads(),
    ]
    y = _HEAD
    for machine in machines:
        y += 22
        parts.append(_text(_MARGIN, y, machine, size=13, weight=600))
        y += 8
        for state in (s for m, s in rows if m == machine):
            parts.append(_text(_MARGIN + 8, y + 12, state.replace("/", " / ")))
            for index, (moment, trouble) in enumerate(COLUMNS):
                result = by_cell[Cell(machine, state, moment, trouble)]
                parts.append(_square(_x(index), y, result, result.cell in on_laptop))
            y += _CELL_H
    parts += _legend(y + 28, results, on_laptop)
    return "\n".join([*parts, "</svg>", ""])


def _x(index: int) -> int:
    """Columns of one moment stand together."""
    moments = list(dict.fromkeys(moment for moment, _ in COLUMNS))
    return _MARGIN + _LABELS + index * _CELL_W + 8 * moments.index(COLUMNS[index][0])


def _heads() -> Iterable[str]:
    for moment in Moment:
        columns = [i for i, (m, _) in enumerate(COLUMNS) if m is moment]
        left, right = _x(columns[0]), _x(columns[-1]) + _CELL_W - _GAP
        words = str(moment).split(", ")
        for line, word in enumerate(words):
            yield _text((left + right) // 2, 56 + 13 * line, word, anchor="middle", weight=600)
        yield f"<line x1='{left}' x2='{right}' y1='76' y2='76' stroke='#c9ced6'/>"
    for index, (_, trouble) in enumerate(COLUMNS):
        x = _x(index) + _CELL_W // 2
        yield (
            f"<text transform='translate({x + 4},{_HEAD + 16}) rotate(-60)' fill='#30363d'>"
            f"{escape(trouble)}</text>"
        )


def _square(x: int, y: int, result: Result, dot: bool) -> str:
    title = f"{result.cell}: {result.outcome} (story: {result.story})"
    if result.broken:
        title += f"; {'; '.join(result.broken)}"
    mark = (
        f"<circle cx='{x + _CELL_W // 2 - 1}' cy='{y + _CELL_H // 2}' r='2.2' fill='#ffffff'/>"
        if dot
        else ""
    )
    return (
        f"<g><title>{escape(title)}</title><rect x='{x}' y='{y}' width='{_CELL_W - _GAP}' "
        f"height='{_CELL_H - _GAP}' rx='2' fill='{COLOURS[result.outcome]}'/>{mark}</g>"
    )


def _legend(y: int, results: Sequence[Result], on_laptop: frozenset[Cell]) -> Iterable[str]:
    for number, outcome in enumerate(Outcome):
        count = sum(result.outcome is outcome for result in results)
        x, line = _MARGIN + (number % 2) * 360, y + 18 * (number // 2)
        yield (
            f"<rect x='{x}' y='{line - 10}' width='14' height='12' rx='2' "
            f"fill='{COLOURS[outcome]}'/>"
        )
        yield _text(x + 20, line, f"{count}  {outcome}")
    if on_laptop:
        yield _text(_MARGIN + 360, y + 36, f"white dot: {len(on_laptop)} also played on the laptop")


def _text(
    x: int, y: int, words: str, *, size: int = 11, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f"<text x='{x}' y='{y}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='#1f2328'>{escape(words)}</text>"
    )
