"""The part of the fault matrix that is played on the laptop, too: a real engine, real processes.

What the laptop's trouble can do to one call of one execution: refuse it once or for ever, and lose
its reply once or for ever. Deaths at an exact moment it cannot do; they are played in memory.
"""

from __future__ import annotations

from typing import Final

from tests.support.faults.cells import Cell, Moment, Trouble, all_cells

MACHINE: Final = "onboard"
COLUMNS: Final = (
    (Moment.BEFORE, Trouble.THROTTLE),
    (Moment.BEFORE, Trouble.SERVER),
    (Moment.BEFORE, Trouble.DENIED),
    (Moment.BEFORE, Trouble.FOR_EVER),
    (Moment.AFTER, Trouble.SERVER),
    (Moment.AFTER, Trouble.FOR_EVER),
)


def laptop_cells() -> tuple[Cell, ...]:
    """The cells of the matrix that the laptop plays as well."""
    return tuple(
        cell
        for cell in all_cells()
        if cell.machine == MACHINE and (cell.moment, cell.trouble) in COLUMNS
    )
