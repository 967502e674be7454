"""The fault matrix: every task of every machine, every moment, every kind of trouble."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from tests.faults import matrix
from tests.support.faults.cells import Outcome, all_cells, play_all

AT_LEAST = 250


def test_every_cell_keeps_every_promise(figure: Callable[[str], None]) -> None:
    cells = all_cells()
    assert len(cells) >= AT_LEAST
    started = time.perf_counter()
    results = tuple(play_all(cells))
    seconds = time.perf_counter() - started
    broken = {r.cell: r.broken for r in results if r.outcome is Outcome.BROKEN}
    assert broken.keys() - matrix.KNOWN.keys() == set(), broken
    assert matrix.KNOWN.keys() - broken.keys() == set(), "mended: take it out of matrix.KNOWN"
    outcomes = Counter(result.outcome for result in results)
    figure(
        f"matrix  {len(cells)} cells of {len({(c.machine, c.state) for c in cells})} tasks in "
        f"{seconds:.1f} s: " + ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in Outcome)
    )
    stale = "run: python -m tests.faults.matrix"
    assert matrix.PICTURE.read_text(encoding="utf-8") == matrix.picture(results), stale
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert page == matrix.page_with(results, page), stale
