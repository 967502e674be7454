"""What all tests of faults share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.faults.figures import FIGURE, pytest_terminal_summary

__all__ = ["figure", "pytest_terminal_summary"]

Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Notes a line for the end of the report."""
    return lambda line: record_property(FIGURE, line)
