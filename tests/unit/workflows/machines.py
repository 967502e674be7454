"""The published machines, and ways to walk through them."""

import json
import re
from collections.abc import Iterator
from typing import Any

from workflows import asl, retries

State = dict[str, Any]

NAMES = ("onboard", "onboard_batch", "worker")
MACHINES: dict[str, State] = {
    name: json.loads(asl.path(name).read_text(encoding="utf-8")) for name in NAMES
}
POLICIES: dict[str, retries.Policies] = {
    "onboard": retries.ONBOARD,
    "onboard_batch": retries.ONBOARD_BATCH,
    "worker": retries.WORKER,
}


def scopes(machine: State) -> Iterator[State]:
    """The machine itself, and what each Map does with an item."""
    yield machine
    for state in machine["States"].values():
        if "ItemProcessor" in state:
            yield from scopes(state["ItemProcessor"])


def all_states(machine: State) -> dict[str, State]:
    """Every state of a machine by its name, those inside of a Map too."""
    return {name: state for scope in scopes(machine) for name, state in scope["States"].items()}


def tasks(machine: State) -> dict[str, State]:
    return {name: s for name, s in all_states(machine).items() if s["Type"] == "Task"}


def ways_from(state: State) -> list[str]:
    choices = [choice["Next"] for choice in state.get("Choices", ())]
    caught = [catcher["Next"] for catcher in state.get("Catch", ())]
    return [*choices, *caught, *(state[way] for way in ("Next", "Default") if way in state)]


def writes(machine: State) -> Iterator[tuple[str, State]]:
    """All updates of a machine, alone or in a transaction, with the name of their state."""
    for name, state in tasks(machine).items():
        if state["Resource"].endswith("dynamodb:updateItem"):
            yield name, state["Parameters"]
        elif state["Resource"].endswith("dynamodb:transactWriteItems"):
            for item in state["Parameters"]["TransactItems"]:
                yield name, item["Update"]


def next_status(write: State) -> str | None:
    """The name of the value that a write gives to the status, if it does."""
    found = re.findall(r"#status = (:\w+)", write["UpdateExpression"])
    return found[0] if found else None
