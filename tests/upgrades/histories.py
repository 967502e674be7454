"""The form of a recorded execution: small, deterministic, and readable in a diff."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "histories"

# What differs from one recording to the next, and what stands for it.
_SAME: Final = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*(?:Z|\+00:00)"), "2026-01-01T00:00:00.000Z"),
    (
        re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"),
        f"{'0' * 8}-0000-0000-0000-{'0' * 12}",
    ),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"), "0" * 32),
    (re.compile(r"Request ID: [^;,)]+"), "Request ID: none"),
    (re.compile(r"(?<=\"expires_at\": )\d+"), "1767225600"),
)


@dataclass(frozen=True)
class Step:
    """A state that was entered.

    Attributes:
        state: Its name.
        input: What its task was told, the same in each try; None if it is no task.
        tries: What came of each try: ``{"output": ...}`` or ``{"error": ..., "cause": ...}``.
        item: Number of the item, inside of a Map.
    """

    state: str
    input: Any = None
    tries: tuple[dict[str, Any], ...] = ()
    item: int | None = None


@dataclass(frozen=True)
class History:
    """One execution.

    Attributes:
        name: The file's name, without its end.
        machine: The machine's name.
        input: What the execution was told.
        row: The request's row when the execution began; of a batch, that of its first request.
        steps: The states, in order.
        status: Status of the execution at its end.
        error: Its error, or nothing.
        others: Rows of the other requests of a batch.
    """

    name: str
    machine: str
    input: dict[str, Any]
    row: dict[str, Any]
    steps: tuple[Step, ...]
    status: str
    error: str = ""
    others: tuple[dict[str, Any], ...] = ()

    @property
    def path(self) -> list[str]:
        """The names of the states, in order."""
        return [step.state for step in self.steps]

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """The rows of all its requests."""
        return (self.row, *self.others)

    def save(self, folder: Path = FOLDER) -> Path:
        """Writes the history, one step a line."""
        head = asdict(self)
        steps = head.pop("steps")
        if not self.others:
            del head["others"]
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        body = ",\n".join(f"  {json.dumps(_lean(step))}" for step in steps)
        path = folder / f"{self.name}.json"
        path.write_text("\n".join(["{", *lines, ' "steps": [', body, " ]", "}", ""]), "utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> History:
        """Reads a history."""
        body = json.loads(path.read_text(encoding="utf-8"))
        steps = tuple(
            Step(**{**step, "tries": tuple(step.get("tries", ()))}) for step in body.pop("steps")
        )
        return cls(steps=steps, **{**body, "others": tuple(body.get("others", ()))})


def all_histories(folder: Path = FOLDER) -> list[History]:
    """All recorded executions, in the order of their names."""
    return [History.load(path) for path in sorted(folder.glob("*.json"))]


def normal(value: Any) -> Any:
    """A JSON value without what differs from one recording to the next."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    for pattern, same in _SAME:
        text = pattern.sub(same, text)
    return json.loads(text)


def one_by_one(machine: str) -> str:
    """A definition whose Maps take their items one after another.

    Side by side, the order of their events is not the same twice.
    """
    document = json.loads(machine)
    for state in document["States"].values():
        if state["Type"] == "Map":
            state["MaxConcurrency"] = 1
    return json.dumps(document)


def steps_of(events: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Folds the events of GetExecutionHistory, of a machine that does one thing at a time."""
    steps: list[_Walk] = []
    item: int | None = None
    for event in events:
        kind = event["type"]
        if kind == "MapIterationStarted":
            item = event["mapIterationStartedEventDetails"]["index"]
        elif kind.startswith("MapIteration"):
            item = None
        elif kind.endswith("StateEntered"):
            steps.append(_Walk(event["stateEnteredEventDetails"]["name"], item))
        elif kind == "TaskScheduled":
            steps[-1].input = json.loads(event["taskScheduledEventDetails"]["parameters"])
        elif kind == "TaskSucceeded":
            output = json.loads(event["taskSucceededEventDetails"]["output"])
            steps[-1].tries.append({"output": output})
        elif kind in ("TaskFailed", "TaskTimedOut"):
            details = event[f"{kind[0].lower()}{kind[1:]}EventDetails"]
            failed = {"error": details["error"], "cause": details.get("cause", "")}
            steps[-1].tries.append(failed)
    return tuple(
        Step(walk.state, normal(walk.input), tuple(normal(walk.tries)), walk.item) for walk in steps
    )


def _plain(value: object) -> int | str:
    return int(value) if isinstance(value, Decimal) else str(value)


@dataclass
class _Walk:
    state: str
    item: int | None
    input: Any = None
    tries: list[dict[str, Any]] = field(default_factory=list)


def _lean(step: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if value not in (None, ())}
