"""One table of cases on two engines: where they differ, one parameter fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.engines.cases import CASES, DIFFERENCES, ENGINES, Case, check, on, play
from tests.support.engines.moto_stack import moto_stack
from tests.support.onboarding import Stack

EXPLAINED = Path(__file__).resolve().parents[2] / "docs" / "engines.md"


@dataclass(frozen=True)
class Engine:
    """A stack and the name of what executes it."""

    name: str
    stack: Stack


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One of the engines; never both at once, because moto catches every call of the process."""
    if request.param == "laptop":
        yield Engine("laptop", request.getfixturevalue("stack"))
        return
    with moto_stack() as stack:
        yield Engine("moto", stack)


@pytest.mark.parametrize(
    ("engine", "case"),
    [
        pytest.param(engine, case, id=f"{engine}-{case.name}")
        for engine in ENGINES
        for case in CASES
        if engine in case.engines
    ],
    indirect=["engine"],
)
def test_the_same_case_ends_the_same_way(engine: Engine, case: Case) -> None:
    expected = on(engine.name, case)
    check(expected, play(engine.stack, expected))


def test_every_known_difference_is_of_a_case_and_explained() -> None:
    """A loop, not parameters: there may be no difference, and then pytest would skip."""
    explained = EXPLAINED.read_text(encoding="utf-8")
    for engine, name in DIFFERENCES:
        assert engine in ENGINES
        assert name in {case.name for case in CASES}
        assert f"`{name}`" in explained
