"""What all tests of faults share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.faults.figures import FIGURE
from tests.support.faults.world import quiet

__all__ = ["figure", "silence"]

Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Notes a line for the end of the report."""
    return lambda line: record_property(FIGURE, line)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """The functions' logs are not what these tests are about."""
    with quiet():
        yield
