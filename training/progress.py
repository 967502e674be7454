"""The lines on stdout: plain ``name=value`` pairs, no names of files, no texts of users.

``limner.contracts.training.METRIC_DEFINITIONS`` reads them, on AWS and on a laptop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def step_line(
    *, step: int, steps: int, loss: float, images_per_second: float, request: str = ""
) -> str:
    """The line of one progress report, such as ``step=50 steps=300 loss=0.0812 …``."""
    line = f"step={step} steps={steps} loss={loss:.4g} images_per_second={images_per_second:.1f}"
    return f"{line} request={request}" if request else line


def event_line(event: str, **values: float | str) -> str:
    """The line of one event, such as ``event=prepared photos=5 seconds=2.1``."""
    pairs = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
    return " ".join((f"event={event}", *pairs))


def say(line: str) -> None:
    """Prints a line at once: nobody wants progress that waits in a buffer."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
