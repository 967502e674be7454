"""The shape of a state machine, read from its Amazon States Language definition.

Only the top level is read: a Parallel or Map state is one node, whatever runs inside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

#: Names of the two nodes that are no states. A state's name cannot hold a control character.
START: Final = "\x00start"
END: Final = "\x00end"


class EdgeKind(StrEnum):
    """Why one state can follow another."""

    NEXT = "next"
    CATCH = "catch"


@dataclass(frozen=True, slots=True)
class Edge:
    """One possible transition. Several rules with the same target are one edge."""

    source: str
    target: str
    kind: EdgeKind


@dataclass(frozen=True, slots=True)
class Node:
    """One state.

    Attributes:
        name: The state's name.
        type: The ASL type, such as ``Task`` or ``Choice``.
        service: For a Task the service it calls, as a person writes it (``DynamoDB``); else "".
        action: For a Task the call, such as ``GetItem``; else "".
        comment: The state's own comment, or "".
    """

    name: str
    type: str
    service: str
    action: str
    comment: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A state machine as a graph.

    Attributes:
        nodes: The states, in the order of the definition.
        edges: All possible transitions, `START` and `END` included, without doubles.
        spine: The states of the main path: the longest way from the first state to a success.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    spine: tuple[str, ...]


_SERVICES: Final = {
    "dynamodb": "DynamoDB",
    "events": "EventBridge",
    "eventbridge": "EventBridge",
    "lambda": "Lambda",
    "s3": "S3",
    "sagemaker": "SageMaker",
    "sfn": "Step Functions",
    "sns": "SNS",
    "sqs": "SQS",
    "states": "Step Functions",
}
_INTEGRATION: Final = re.compile(
    r"^arn:[^:]+:states:[^:]*:[^:]*:(?:aws-sdk:)?(?P<service>[^:.]+):(?P<action>[^:.]+)"
)


def read_machine(definition: Mapping[str, Any]) -> Machine:
    """Reads a definition.

    Args:
        definition: The state machine's definition, as parsed JSON.

    Returns:
        Its graph. A transition to a state that does not exist is left out.
    """
    states: Mapping[str, Mapping[str, Any]] = definition["States"]
    nodes = tuple(_node(name, state) for name, state in states.items())
    kinds: dict[tuple[str, str], EdgeKind] = {(START, definition["StartAt"]): EdgeKind.NEXT}
    for name, state in states.items():
        for target in _next_targets(state):
            kinds[name, target] = EdgeKind.NEXT
        for catcher in state.get("Catch", ()):
            kinds.setdefault((name, catcher["Next"]), EdgeKind.CATCH)
    edges = tuple(
        Edge(source, target, kind)
        for (source, target), kind in kinds.items()
        if target in states or target == END
    )
    return Machine(nodes, edges, _spine(definition["StartAt"], states))


def _node(name: str, state: Mapping[str, Any]) -> Node:
    service, action = _service(state.get("Resource", ""))
    return Node(name, state["Type"], service, action, state.get("Comment", ""))


def _service(resource: str) -> tuple[str, str]:
    if ":function:" in resource:
        return "Lambda", "Invoke"
    if ":activity:" in resource:
        return "Activity", ""
    match = _INTEGRATION.match(resource)
    if match is None:
        return "", ""
    service, action = match["service"], match["action"]
    return _SERVICES.get(service, service), action[:1].upper() + action[1:]


def _next_targets(state: Mapping[str, Any]) -> Iterator[str]:
    """All targets but the catchers', in the order of the definition."""
    for rule in state.get("Choices", ()):
        yield rule["Next"]
    for key in ("Default", "Next"):
        if key in state:
            yield state[key]
    if state.get("End"):
        yield END


def _spine(start: str, states: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The longest way without a loop from `start` to a success, over any edge but catches.

    A Choice's Default wins a tie: it is what the author holds for the usual case. The search
    is a depth-first one with the best tail kept per state; a step back into the way that is
    being walked is no way at all.
    """
    best: dict[str, tuple[str, ...] | None] = {}

    def walk(name: str, trail: frozenset[str]) -> tuple[str, ...] | None:
        if name in best:
            return best[name]
        state = states.get(name)
        if state is None or name in trail or state["Type"] == "Fail":
            return None
        longest: tuple[str, ...] | None = () if state["Type"] == "Succeed" else None
        for target in _next_targets(state):
            tail = () if target == END else walk(target, trail | {name})
            if tail is not None and (longest is None or len(tail) >= len(longest)):
                longest = tail
        best[name] = None if longest is None else (name, *longest)
        return best[name]

    return walk(start, frozenset()) or (start,)
