"""Checks a history of calls to the engine against what one model may do, call by call.

A model is a state machine with reference counts; a call is one or two points in time between its
beginning and its end at which it acts on it::

    ABSENT ──load──> LOADING ──load──> LOADED ──unload──> LEAVING ──unload──> ABSENT
                        └── load refused ──> ABSENT         (only when nobody holds it)

An invocation holds the model from one point on, where it must be LOADED, to another. A history is
right if such points can be found for every call. The search goes through the events in the order
of time and keeps every state that is still possible (just-in-time linearization: G. Lowe, "Testing
for linearizability", Concurrency and Computation 29, 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

ABSENT, LOADING, LOADED, LEAVING = "ABSENT", "LOADING", "LOADED", "LEAVING"
_DONE: Final = 2

State = tuple[str, int, int]
"""Phase, version (0 where there is none), holders."""
Config = tuple[State, frozenset[tuple[int, int]]]
"""A possible state, and the progress of each call that has begun and not ended."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call and its outcome.

    Attributes:
        kind: ``load``, ``unload``, ``invoke`` or ``get``.
        name: The model.
        code: ``ok``, or the error's code.
        version: Which load's weights were seen (or loaded), where the call went well.
        began: Position of its beginning in the order of all events.
        ended: Position of its end.
    """

    kind: str
    name: str
    code: str
    version: int
    began: int
    ended: int


def check(calls: Iterable[Call]) -> int:
    """Checks a history; returns the largest number of possible states that had to be kept.

    Raises:
        AssertionError: With the call that nothing explains.
    """
    by_name: dict[str, list[Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
    return max(_check_model(found) for found in by_name.values())


def _check_model(calls: list[Call]) -> int:
    events = sorted(
        [(call.began, index) for index, call in enumerate(calls)]
        + [(call.ended, index) for index, call in enumerate(calls)]
    )
    begun: set[int] = set()
    configs: set[Config] = {((ABSENT, 0, 0), frozenset())}
    most = 1
    for _, index in events:
        if index not in begun:
            begun.add(index)
            configs = {(state, pending | {(index, 0)}) for state, pending in configs}
            continue
        reached = _closure(configs, calls)
        most = max(most, len(reached))
        done = (index, _DONE)
        configs = {(state, pending - {done}) for state, pending in reached if done in pending}
        assert configs, f"nothing explains {calls[index]}; before it: {sorted(reached)[:5]}"
    return most


def _closure(configs: set[Config], calls: list[Call]) -> set[Config]:
    """All that may be, after any of the pending calls has acted."""
    reached = set(configs)
    fresh = list(configs)
    while fresh:
        state, pending = fresh.pop()
        for index, progress in pending:
            if progress == _DONE:
                continue
            for after, then in _acts(calls[index], progress, state):
                config = (then, (pending - {(index, progress)}) | {(index, after)})
                if config not in reached:
                    reached.add(config)
                    fresh.append(config)
    return reached


def _acts(call: Call, progress: int, state: State) -> Iterator[tuple[int, State]]:
    """What a call can do next: its progress then, and the state."""
    phase, version, holders = state
    outcome = (call.kind, call.code)
    if outcome == ("load", "ok"):
        if progress == 0 and phase == ABSENT:
            yield 1, (LOADING, 0, 0)
        elif progress == 1:
            yield _DONE, (LOADED, call.version, 0)
    elif outcome == ("load", "OUT_OF_MEMORY"):
        if progress == 0 and phase == ABSENT:
            yield _DONE, state
            yield 1, (LOADING, 0, 0)
        elif progress == 1:
            yield _DONE, (ABSENT, 0, 0)
    elif outcome == ("load", "MODEL_ALREADY_LOADED"):
        if phase != ABSENT:
            yield _DONE, state
    elif call.code == "MODEL_NOT_LOADED":
        if phase != LOADED:
            yield _DONE, state
    elif outcome == ("unload", "ok"):
        if progress == 0 and phase == LOADED:
            yield 1, (LEAVING, version, holders)
        elif progress == 1 and holders == 0:
            yield _DONE, (ABSENT, 0, 0)
    elif outcome == ("invoke", "ok"):
        if progress == 0 and phase == LOADED and version == call.version:
            yield 1, (phase, version, holders + 1)
        elif progress == 1:
            yield _DONE, (phase, version, holders - 1)
    elif outcome == ("get", "ok"):
        if phase == LOADED and version == call.version:
            yield _DONE, state
    else:
        raise AssertionError(f"outside of the contract: {call}")
