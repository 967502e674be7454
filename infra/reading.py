"""A state machine's definition in the order in which a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# The order in which a person reads a state: what it is, what it does, what comes of it, and what
# happens if it does not work.
_FIELDS: Final = (
    *("Comment", "QueryLanguage", "ProcessorConfig", "StartAt", "TimeoutSeconds", "States"),
    *("Type", "Resource", "InputPath", "Parameters", "Result", "Choices", "Default", "Seconds"),
    *("ItemsPath", "MaxConcurrency", "ItemSelector", "ItemProcessor"),
    *("ResultSelector", "ResultPath", "Next", "End"),
    *("Error", "ErrorPath", "Cause", "CausePath", "Retry", "Catch"),
)


def arrange(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A machine, or what a Map does with each item, in the order in which a person reads it."""
    states = {name: _state(definition["States"][name]) for name in _reading_order(definition)}
    return _ordered({**definition, "States": states})


def _state(state: Mapping[str, Any]) -> dict[str, Any]:
    if "ItemProcessor" in state:
        state = {**state, "ItemProcessor": arrange(state["ItemProcessor"])}
    return _ordered(state)


def _ordered(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in sorted(fields, key=_FIELDS.index)}


def _reading_order(definition: Mapping[str, Any]) -> list[str]:
    """The states in the order of the picture: ways forward first, what a Catch leads to last."""
    states = definition["States"]
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        order.append(name)
        state = states[name]
        ways = [choice["Next"] for choice in state.get("Choices", ())]
        for way in (*ways, state.get("Default"), state.get("Next")):
            if way:
                visit(way)

    visit(definition["StartAt"])
    for name in order:  # grows as it goes
        for catcher in states[name].get("Catch", ()):
            visit(catcher["Next"])
    return order
