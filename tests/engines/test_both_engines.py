"""One table of cases on two engines: where they differ, one parameter fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engines.cases import CASES, Case, check, play
from tests.support.engines.moto_stack import moto_stack
from tests.support.onboarding import Stack


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The stack on one of the engines; never both at once, because moto catches every call."""
    if request.param == "laptop":
        yield request.getfixturevalue("stack")
        return
    with moto_stack() as stack:
        yield stack


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("engine", ["moto", "laptop"], indirect=True)
def test_the_same_case_ends_the_same_way(engine: Stack, case: Case) -> None:
    check(case, play(engine, case))
