"""Replays recorded executions on the present machines: same answers, and the same way through?

Every task is answered from the record, try by try, so nothing but the definition decides. A way
that differs is a failure, unless ``migrations.toml`` says that it is meant, and why it is safe.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name.error_name import ErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.state.exec import execute_state
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration import iteration_worker
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service,
    state_task_service_callback,
)
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails

from tests.support.engines.moto_stack import definition, moto_stack
from tests.upgrades.histories import History, all_histories, one_by_one, steps_of

MIGRATIONS: Final = Path(__file__).parent / "migrations.toml"
UNRECORDED: Final = "Replay.NotRecorded"


@dataclass(frozen=True)
class Migration:
    """A difference that is meant.

    Attributes:
        history: Which histories it is for; may end in ``*``.
        was: States that stood next to each other.
        now: The states that stand there now.
        why: Why that is safe.
        answers: What tasks answer that no history has.
    """

    history: str
    was: tuple[str, ...]
    now: tuple[str, ...]
    why: str
    answers: Mapping[str, Any] = field(default_factory=dict)

    def is_for(self, history: History) -> bool:
        """Whether the history is one of those, and has the states in its path."""
        return fnmatch.fnmatchcase(history.name, self.history) and self._replaced(
            history.path
        ) != list(history.path)

    def _replaced(self, path: Sequence[str]) -> list[str]:
        out: list[str] = []
        at = 0
        while at < len(path):
            if tuple(path[at : at + len(self.was)]) == self.was:
                out += self.now
                at += len(self.was)
            else:
                out.append(path[at])
                at += 1
        return out

    def apply(self, path: Sequence[str]) -> list[str]:
        """The path as it is meant to be now."""
        return self._replaced(path)


@dataclass(frozen=True)
class Replayed:
    """What the present machine did with a history's answers.

    Attributes:
        history: The history.
        path: The states that were entered.
        status: Status of the execution.
        error: Its error, or nothing.
        unrecorded: Tasks that asked for more than the record has.
        migrations: The migrations that apply.
    """

    history: History
    path: list[str]
    status: str
    error: str
    unrecorded: tuple[str, ...]
    migrations: tuple[Migration, ...]

    @property
    def differences(self) -> list[str]:
        """What is not as it was, and not meant; empty if all is well."""
        meant = list(self.history.path)
        for migration in self.migrations:
            meant = migration.apply(meant)
        found = [f"{state} asked for an answer that was never given" for state in self.unrecorded]
        if self.path != meant:
            found.append(f"went {_around(self.path, meant)}, not {_around(meant, self.path)}")
        if (self.status, self.error) != (self.history.status, self.history.error):
            found.append(
                f"ended {self.status} {self.error},"
                f" not {self.history.status} {self.history.error}".replace("  ", " ")
            )
        return found


class Script:
    """The answers of a history, by state and item of a Map, try by try.

    Args:
        history: The history.
        answers: What tasks answer that no history has.
    """

    def __init__(self, history: History, answers: Mapping[str, Any]) -> None:
        self._tries: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for step in history.steps:
            self._tries.setdefault((step.state, step.item), []).extend(step.tries)
        self._always = dict(answers)
        self.unrecorded: list[str] = []
        self.item: int | None = None
        """The item of a Map that is being worked on, one at a time (``one_by_one``)."""

    def answer(self, state: str) -> dict[str, Any]:
        """The next answer of a task."""
        left = self._tries.get((state, self.item))
        if left:
            return left.pop(0)
        if state in self._always:
            return {"output": self._always[state]}
        self.unrecorded.append(state)
        return {"error": UNRECORDED, "cause": state}


@contextmanager
def answered_by(script: Script) -> Iterator[None]:
    """Lets every task of moto's engine be answered by a script."""
    service = state_task_service.StateTaskService
    after = service._after_eval_execution

    def eval_execution(self: Any, env: Any) -> None:
        self.resource.eval(env=env)
        part = env.stack.pop()
        parameters = self._eval_parameters(env=env)
        credentials = self._eval_state_credentials(env=env)
        self._before_eval_execution(
            env=env,
            resource_runtime_part=part,
            raw_parameters=parameters,
            state_credentials=credentials,
        )
        answer = script.answer(env.states.context_object.context_object_data["State"]["Name"])
        if "error" in answer:
            raise FailureEventException(_failure(self, env, answer))
        env.stack.append(answer["output"])
        after(self, env, part, parameters, credentials)

    eval_job = iteration_worker.IterationWorker._eval_job

    def eval_item(self: Any, env: Any, job: Any) -> None:
        script.item = job.job_index
        try:
            eval_job(self, env, job)
        finally:
            script.item = None

    with ExitStack() as stack:
        stack.enter_context(patch.object(service, "_eval_execution", eval_execution))
        worker = iteration_worker.IterationWorker
        stack.enter_context(patch.object(worker, "_eval_job", eval_item))
        callback = state_task_service_callback.StateTaskServiceCallback
        not_waiting = patch.object(callback, "_is_integration_pattern", lambda _self: False)
        stack.enter_context(not_waiting)
        for kind in [service, *_below(service)]:
            if "_from_error" in vars(kind):
                told = _told_first(vars(kind)["_from_error"])
                stack.enter_context(patch.object(kind, "_from_error", told))
        yield


def _below(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *_below(child))]


def _told_first(before: Any) -> Any:
    """Some services of moto read any exception as an error of AWS's; ours says what it is."""

    def from_error(self: Any, env: Any, ex: Exception) -> Any:
        if isinstance(ex, FailureEventException):
            return execute_state.ExecutionState._from_error(self, env, ex)
        return before(self, env=env, ex=ex)

    return from_error


def _failure(task: Any, env: Any, answer: Mapping[str, str]) -> FailureEvent:
    return FailureEvent(
        env=env,
        error_name=ErrorName(answer["error"]),
        event_type=HistoryEventType.TaskFailed,
        event_details=EventDetails(
            taskFailedEventDetails=TaskFailedEventDetails(
                resource=task._get_sfn_resource(),
                resourceType=task._get_sfn_resource_type(),
                error=answer["error"],
                cause=answer["cause"],
            )
        ),
    )


def replay(
    history: History, migrations: Sequence[Migration], machine: str | None = None
) -> Replayed:
    """Runs a machine on a history's input and answers.

    Args:
        history: The history.
        migrations: All migrations; those for this history are picked.
        machine: A definition; the published machine of the history's name where absent.
    """
    ours = tuple(migration for migration in migrations if migration.is_for(history))
    answers = {state: answer for one in ours for state, answer in one.answers.items()}
    script = Script(history, answers)
    text = one_by_one(machine or definition(history.machine))
    with moto_stack({history.machine: text}) as stack, answered_by(script):
        states = stack.laptop.states
        arn = states.start_execution(
            stateMachineArn=next(
                arn for arn in stack.outputs.values() if arn.endswith(f":{history.machine}")
            ),
            name="replayed",
            input=json.dumps(history.input),
        )["executionArn"]
        execution = stack.laptop.finish(arn)
        path = [step.state for step in steps_of(stack.history(execution))]
    return Replayed(
        history,
        path,
        execution["status"],
        execution.get("error", ""),
        tuple(dict.fromkeys(script.unrecorded)),
        ours,
    )


def all_migrations(path: Path = MIGRATIONS) -> list[Migration]:
    """What ``migrations.toml`` says."""
    listed = tomllib.loads(path.read_text(encoding="utf-8")).get("migration", [])
    return [
        Migration(**{**one, "was": tuple(one["was"]), "now": tuple(one["now"])}) for one in listed
    ]


def summary(results: Sequence[Replayed]) -> str:
    """One line for people."""
    well = sum(not result.differences for result in results)
    used = {id(migration) for result in results for migration in result.migrations}
    return f"replayed {well} of {len(results)}, {len(used)} migrations"


def _around(path: Sequence[str], other: Sequence[str]) -> str:
    """The part of a path in which it differs from another one, with its neighbours."""
    first = next(
        (i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b),
        min(len(path), len(other)),
    )
    part = path[max(0, first - 1) : first + 4]
    return " > ".join([*part, "..."] if first + 4 < len(path) else part)


def main() -> int:
    """Replays everything; 1 if anything differs."""
    migrations = all_migrations()
    results = [replay(history, migrations) for history in all_histories()]
    for result in results:
        for difference in result.differences:
            sys.stdout.write(f"{result.history.name}: {difference}\n")
    sys.stdout.write(f"{summary(results)}\n")
    return int(any(result.differences for result in results))


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    sys.exit(main())
