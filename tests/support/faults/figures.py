"""The figures that the fault tests have measured, at the end of pytest's report.

A test says ``record_property("figure", "P4: ...")``; the report of a test carries its properties
from xdist's workers to the terminal.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

FIGURE: Final = "figure"
_SHOWN: Final = pytest.StashKey[bool]()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Lists the figures once, by whichever conftest.py has taken this hook in."""
    config = terminalreporter.config
    if config.stash.get(_SHOWN, False):
        return
    config.stash[_SHOWN] = True
    lines = sorted(
        {
            str(value)
            for reports in terminalreporter.stats.values()
            for report in reports
            for name, value in getattr(report, "user_properties", ())
            if name == FIGURE
        }
    )
    if lines:
        terminalreporter.section("figures of the promises")
        for line in lines:
            terminalreporter.write_line(line)
