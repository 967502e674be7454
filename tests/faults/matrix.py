"""Plays the whole fault matrix and publishes it: ``python -m tests.faults.matrix``.

Writes ``docs/images/fault-matrix.svg`` and the table of figures in ``docs/faults.md``. The same
machines and the same code give the same bytes; a test compares.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.faults.cells import Cell, Outcome, Result, all_cells, play_all
from tests.support.faults.heatmap import draw
from tests.support.faults.laptop_cells import laptop_cells
from tests.support.faults.world import ROOT, machine_names, quiet

PICTURE: Final = ROOT / "docs" / "images" / "fault-matrix.svg"
PAGE: Final = ROOT / "docs" / "faults.md"
_TABLE: Final = re.compile(r"(<!-- matrix -->\n).*?(<!-- /matrix -->)", re.DOTALL)

# Cells that do not keep every promise today, each with the reason. A cell that is mended has to
# leave this list, and one that breaks has to be mended.
KNOWN: Final[dict[Cell, str]] = {}


def table(results: Sequence[Result]) -> str:
    """The figures of a run as a table."""
    names = machine_names()
    counts = Counter((result.cell.machine, result.outcome) for result in results)
    lines = [f"| outcome | {' | '.join(f'`{name}`' for name in names)} | all |"]
    lines.append("|---|" + "--:|" * (len(names) + 1))
    for outcome in Outcome:
        row = [counts[name, outcome] for name in names]
        lines.append(f"| {outcome} | {' | '.join(map(str, row))} | {sum(row)} |")
    totals = [sum(result.cell.machine == name for result in results) for name in names]
    lines.append(f"| cells | {' | '.join(map(str, totals))} | {sum(totals)} |")
    return "\n".join(lines) + "\n"


def page_with(results: Sequence[Result], page: str) -> str:
    """The page with the figures of a run in the place of those before."""
    return _TABLE.sub(lambda match: match[1] + table(results) + match[2], page)


def picture(results: Sequence[Result]) -> str:
    """The heat map of a run."""
    return draw(results, frozenset(laptop_cells()))


def main() -> int:
    """Plays all cells, writes picture and page, and tells what is broken."""
    with quiet():
        results = tuple(play_all(all_cells()))
    _write(PICTURE, picture(results))
    _write(PAGE, page_with(results, PAGE.read_text(encoding="utf-8")))
    broken = [result for result in results if result.outcome is Outcome.BROKEN]
    for result in broken:
        sys.stdout.write(f"{result.cell}: {'; '.join(result.broken)}\n")
    sys.stdout.write(table(results))
    return int(any(result.cell not in KNOWN for result in broken))


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
