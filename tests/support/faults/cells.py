"""The cells of the fault matrix, generated from the published machines, and how one is played.

::

    state of a machine  x  moment               x  fault
                           before the effect       refused once (throttle, 5xx, timeout, denied),
                                                   refused for ever, stopped, killed
                           after the effect,       its reply lost once (5xx, timeout), for ever,
                           before the reply        stopped, killed
                           after the reply,        stopped, killed
                           before the transition

``stopped`` is a StopExecution whose event is heard; ``killed`` is one that nobody hears of, and
whose training job goes on. A cell plays the first story that comes through its state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Final

from tests.support.faults.machine import Call, Execution, Fault, TaskFailedError
from tests.support.faults.schedules import trouble_of
from tests.support.faults.sites import task_states
from tests.support.faults.stories import (
    STORIES,
    Crash,
    Story,
    Summary,
    System,
    no_worse,
    unsound,
)
from tests.support.faults.world import World, machine_names


class Moment(StrEnum):
    """When a fault strikes a call."""

    BEFORE = "before the effect"
    AFTER = "after the effect, before the reply"
    LATER = "after the reply, before the transition"


class Trouble(StrEnum):
    """What strikes."""

    THROTTLE = "throttled"
    SERVER = "5xx"
    TIMEOUT = "timeout"
    DENIED = "denied"
    FOR_EVER = "for ever"
    STOP = "stopped"
    KILL = "killed"


COLUMNS: Final[tuple[tuple[Moment, Trouble], ...]] = (
    (Moment.BEFORE, Trouble.THROTTLE),
    (Moment.BEFORE, Trouble.SERVER),
    (Moment.BEFORE, Trouble.TIMEOUT),
    (Moment.BEFORE, Trouble.DENIED),
    (Moment.BEFORE, Trouble.FOR_EVER),
    (Moment.BEFORE, Trouble.STOP),
    (Moment.BEFORE, Trouble.KILL),
    (Moment.AFTER, Trouble.SERVER),
    (Moment.AFTER, Trouble.TIMEOUT),
    (Moment.AFTER, Trouble.FOR_EVER),
    (Moment.AFTER, Trouble.STOP),
    (Moment.AFTER, Trouble.KILL),
    (Moment.LATER, Trouble.STOP),
    (Moment.LATER, Trouble.KILL),
)


class Outcome(StrEnum):
    """How a cell ended; all but the last keep every promise."""

    MENDED = "as if nothing had happened"
    NAMED = "ended with a name, by the machine"
    RULE = "ended by the rules on the execution's end"
    RECONCILED = "ended, or done anew, by reconcile"
    BROKEN = "a promise is broken"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        machine: Name of the machine.
        state: A Task state of it.
        moment: When.
        trouble: What.
    """

    machine: str
    state: str
    moment: Moment
    trouble: Trouble

    def __str__(self) -> str:
        return f"{self.machine}:{self.state} {self.trouble} {self.moment}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a cell.

    Attributes:
        cell: The cell.
        outcome: Its colour.
        story: The story that was played.
        broken: The promises that were broken, in words.
    """

    cell: Cell
    outcome: Outcome
    story: str
    broken: tuple[str, ...] = ()


def all_cells() -> tuple[Cell, ...]:
    """Every cell, machine by machine and state by state in the published order."""
    return tuple(
        Cell(name, state, moment, trouble)
        for name in machine_names()
        for state in task_states(name)
        for moment, trouble in COLUMNS
    )


@dataclass(frozen=True)
class _Telling:
    story: Story
    states: frozenset[str]
    summary: Summary


@cache
def _tellings() -> tuple[_Telling, ...]:
    """All stories without trouble."""
    return tuple(_tell(story) for story in STORIES)


def _tell(story: Story) -> _Telling:
    system = System()
    story(system)
    states = {
        f"{execution.arn.split(':')[6]}:{state}"
        for execution in system.world.executions.values()
        for state in execution.visits
    }
    return _Telling(story, frozenset(states), Summary.of(system.world))


# Stories that take turns by themselves would pass over a death at a turn.
_BY_HAND: Final = frozenset(
    {
        *("stopped", "event_lost", "batch_dies", "batch_dies_early", "job_over"),
        *("batch_cancelled", "cancelled_while_it_is_started"),
    }
)


def story_of(cell: Cell) -> Story:
    """The story that a cell plays.

    Raises:
        LookupError: If no story reaches its state.
    """
    return _telling_of(cell).story


def _telling_of(cell: Cell) -> _Telling:
    name = f"{cell.machine}:{cell.state}"
    for telling in _tellings():
        if name in telling.states and telling.story.__name__ not in _BY_HAND:
            return telling
    raise LookupError(f"no story reaches {name}: add one to stories.py")


@dataclass
class Death(Crash):
    """The death of an execution in a cell's state, at the cell's moment."""

    cell: Cell | None = field(default=None)

    def strike(self, world: World, execution: Execution, call: Call) -> bool:
        """Kills the first execution that stands before the cell's call."""
        if self.where or self.cell is None or not _stands(self.cell, call):
            return False
        if self.cell.moment is not Moment.BEFORE:
            world.memory.writer = execution.arn
            with contextlib.suppress(TaskFailedError):
                world.perform(call.resource, call.parameters, execution)
                if self.cell.moment is Moment.LATER and call.resource.endswith(".sync"):
                    world.wait_for(call.parameters)
            world.memory.writer = None
        self.turn = 0
        return super().strike(world, execution, call)


def _stands(cell: Cell, call: Call) -> bool:
    machine = call.execution.arn.split(":")[6]
    return bool(call.resource) and machine == cell.machine and call.state == cell.state


def play(cell: Cell) -> Result:
    """Plays a cell and judges what is left.

    Raises:
        LookupError: If no story reaches the cell's state.
    """
    telling = _telling_of(cell)
    struck: list[int] = []
    system = System(decide=decider(cell, struck))
    if cell.trouble in (Trouble.STOP, Trouble.KILL):
        killed = cell.trouble is Trouble.KILL
        system.crash = Death(turn=0, unheard=killed, orphaned=killed, cell=cell)
    telling.story(system)
    system.settle(rounds=3)
    if not struck and not (system.crash and system.crash.where):
        raise LookupError(f"{cell} did not strike in {telling.story.__name__}")
    return Result(cell, *_judge(system, telling))


def decider(cell: Cell, struck: list[int]) -> Callable[[Call], Fault | None]:
    """The errors of a cell; those that last for ever strike the first visit until it is left."""
    visit: list[Execution] = []

    def decide(call: Call) -> Fault | None:
        if cell.trouble in (Trouble.STOP, Trouble.KILL) or not _stands(cell, call):
            return None
        if cell.trouble is not Trouble.FOR_EVER and struck:
            return None
        if visit and visit[0] is not call.execution:
            return None
        visit[:] = [call.execution]
        struck.append(call.attempt)
        return Fault(_error(cell, call), after=cell.moment is Moment.AFTER)

    return decide


# These integrations have one name for several refusals; the Cause tells which it was.
_DENIED: Final = {
    "Lambda": "Lambda.AWSLambdaException",
    "SageMaker": "SageMaker.AmazonSageMakerException",
}


def _error(cell: Cell, call: Call) -> str:
    match cell.trouble:
        case Trouble.THROTTLE:
            return trouble_of(call, 0)
        case Trouble.TIMEOUT:
            return "States.Timeout"
        case Trouble.DENIED:
            prefix = trouble_of(call, 1).partition(".")[0]
            return _DENIED.get(prefix, f"{prefix}.AccessDeniedException")
    return trouble_of(call, 1)


def _judge(system: System, telling: _Telling) -> tuple[Outcome, str, tuple[str, ...]]:
    story = telling.story.__name__
    broken = tuple(unsound(system.world))
    summary = Summary.of(system.world)
    if broken:
        return Outcome.BROKEN, story, broken
    if summary.requests == telling.summary.requests and summary.models == telling.summary.models:
        if system.crash is None:
            return Outcome.MENDED, story, ()
    elif system.crash is None:
        return Outcome.NAMED, story, ()
    if system.crash is not None and (system.crash.unheard or no_worse(summary, telling.summary)):
        return Outcome.RECONCILED, story, ()
    return Outcome.RULE, story, ()


def play_all(cells: tuple[Cell, ...]) -> Iterator[Result]:
    """Plays cells one after the other."""
    return (play(cell) for cell in cells)
