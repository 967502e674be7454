"""P11: who goes back to an older version meets an onboarding at any of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limner.contracts.errors import LimnerError
from tests.support.faults.machine import Call, Fault
from tests.support.faults.stories import FIRST, Summary, System, again, unsound

RETRAIN = "t3"
LOST = Fault("DynamoDb.InternalServerErrorException", after=True)


def states_of_a_retraining() -> list[str]:
    system, seen = System(), list[str]()
    again(system)

    def note(call: Call) -> None:
        seen.append(call.state)

    system.decide = note
    system.onboard(token=RETRAIN, retrain=True)
    system.settle()
    return seen


def live(system: System) -> int:
    row: Any = system.world.memory.item("models", "alice", "default")
    return int(row["live_version"]["N"])


def test_a_roll_back_at_every_step_of_a_retraining(figure: Callable[[str], None]) -> None:
    """The new version goes live at its end, under a number of its own; nothing is written over."""
    states = states_of_a_retraining()
    assert {"ReserveVersion", "RecordModel", "PublishArtifact", "ActivateModel"} <= set(states)
    for turn in range(len(states)):
        system = System()
        again(system)
        before = {k: v for k, v in system.world.objects.items() if k.startswith("models/")}
        calls = iter(range(len(states) + 1))

        def decide(_: Call, calls: Any = calls, turn: int = turn, system: System = system) -> None:
            if next(calls) == turn:
                assert live(system) in (2, 3)
                system.ask(lambda limner: limner.roll_back("alice"))

        system.decide = decide
        system.onboard(token=RETRAIN, retrain=True)
        system.settle()

        activated = states.index("ActivateModel") < turn
        assert live(system) == (2 if activated else 3), states[turn]
        assert unsound(system.world) == []
        summary = Summary.of(system.world)
        assert set(summary.versions.values()) == {"READY"}
        assert len(summary.versions) == 3
        assert before.items() <= system.world.objects.items(), "an artifact was written over"
    figure(
        f"P11  a roll-back at each of the {len(states)} steps of a retraining: 0 artifacts written"
        " over, the new version live at its end, 0 requests left behind"
    )


@pytest.mark.parametrize("forgotten", [False, True], ids=["at once", "after ten minutes"])
def test_a_stale_activation_never_undoes_a_roll_back(forgotten: bool) -> None:
    """ActivateModel was carried out, its reply lost; a roll-back comes before it is repeated."""
    system = System()
    again(system)
    struck: list[str] = []

    def decide(call: Call) -> Fault | None:
        if call.state != "ActivateModel":
            return None
        struck.append(call.state)
        if len(struck) == 1:
            return LOST
        if len(struck) == 2:
            system.ask(lambda limner: limner.roll_back("alice", from_version=3))
            if forgotten:
                system.world.memory._tokens.clear()
        return None

    system.decide = decide
    request = system.onboard(token=RETRAIN, retrain=True)
    system.settle()
    assert len(struck) >= 2
    assert live(system) == 2
    assert unsound(system.world) == []
    summary = Summary.of(system.world)
    assert summary.requests[request.request_id] == ("READY", "")
    assert ("limner.onboarding.ready", request.request_id) in summary.told


def test_the_first_version_has_nothing_to_go_back_to() -> None:
    system = System()
    system.onboard(token=FIRST)
    system.settle()
    with pytest.raises(LimnerError, match="VERSION_NOT_FOUND"):
        system.ask(lambda limner: limner.roll_back("alice"))
