"""A published machine, executed state by state: an interpreter of ASL for schedules.

The laptop runs the same machines for real, one thread an execution, in about a second each. This
one compiles paths, templates and choices to closures and hands the turn back before every call, so
that a test can interleave, injure and end executions wherever it likes, ten thousand times::

    run = execution.run()
    call = next(run)                 # stands before the first call
    call = run.send(None)            # made it; stands before the next one
    call = run.send(Fault(after=True, error="DynamoDB.InternalServerErrorException"))

Only what Limner's machines use is there; anything else raises NotImplementedError, and so does not
pass unseen. Both interpreters run the same machines in the tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Protocol, TypeAlias

from workflows import asl

Json: TypeAlias = Any
Context: TypeAlias = Mapping[str, Any]
Getter: TypeAlias = Callable[[Json, Context], Json]

# Retries end by their own count; this ends a loop that a test's fault plan feeds for ever.
MAX_VISITS: Final = 5_000


class TaskFailedError(Exception):
    """A state has failed.

    Args:
        error: Error name, as Retry and Catch match it.
        cause: Its cause.
    """

    def __init__(self, error: str, cause: str = "") -> None:
        super().__init__(error, cause)
        self.error = error
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble of one call.

    Attributes:
        error: Error name that the state sees.
        cause: Its cause.
        after: Whether the call is executed and only its answer is lost.
    """

    error: str
    cause: str = "fault"
    after: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """The turn before a call, or before a wait.

    Attributes:
        execution: Who makes it.
        state: Name of the state; inside of a Map with the Map's name before it.
        attempt: 0 for the first attempt of this visit.
        resource: ARN of the integration; empty for a wait.
        parameters: What it is called with.
    """

    execution: Execution
    state: str
    attempt: int
    resource: str
    parameters: Json


class Services(Protocol):
    """What the calls of tasks do."""

    def perform(self, resource: str, parameters: Json, execution: Execution) -> Json:
        """Makes a call; raises ``TaskFailedError``."""

    def wait_for(self, parameters: Json) -> Json:
        """Waits for the job of a ``.sync`` task; raises ``TaskFailedError`` if it failed."""

    def abandon(self, parameters: Json) -> None:
        """The best effort to cancel the job of a ``.sync`` task that timed out."""

    def now_iso(self) -> str:
        """The time, for ``$$.State.EnteredTime``."""


Turns: TypeAlias = Generator[Call, "Fault | None", Json]


@dataclass
class Execution:
    """One execution of a machine.

    Attributes:
        machine: What it executes.
        arn: Its own name in full.
        input: What it was started with.
        services: What its calls do.
        status: As DescribeExecution has it.
        visits: The states that it has entered, in order.
        output: Of the last state, once it has succeeded.
        error: Why it failed.
        cause: In more words.
    """

    machine: Machine
    arn: str
    input: Json
    services: Services
    status: str = "RUNNING"
    visits: list[str] = field(default_factory=list)
    output: Json = None
    error: str = ""
    cause: str = ""

    def run(self) -> Turns:
        """Takes the turns of the execution to its end."""
        try:
            self.output = yield from self.machine.flow.run(self, self.input, "")
            self.status = "SUCCEEDED"
        except TaskFailedError as failure:
            self.status, self.error, self.cause = "FAILED", failure.error, failure.cause


class Machine:
    """A compiled machine.

    Args:
        definition: The definition, with values in place of the placeholders.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.definition = definition
        self.flow = _Flow(definition)

    @classmethod
    def published(cls, name: str, values: Mapping[str, str]) -> Machine:
        """Compiles a published machine; each placeholder has a value."""
        return cls(json.loads(asl.load(name, values)))


# -- States ---------------------------------------------------------------------------------------


class _Flow:
    """States with a start: a machine, or the body of a Map."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self._start = definition["StartAt"]
        self._states = {name: _State(name, body) for name, body in definition["States"].items()}

    def run(self, execution: Execution, data: Json, prefix: str) -> Turns:
        name = self._start
        for _ in range(MAX_VISITS):
            state = self._states[name]
            execution.visits.append(prefix + name)
            entered = execution.services.now_iso()
            context = {
                "Execution": {
                    "Id": execution.arn,
                    "Name": execution.arn.rpartition(":")[2],
                    "Input": execution.input,
                },
                "State": {"Name": name, "EnteredTime": entered},
            }
            data, following = yield from state.run(execution, data, context, prefix)
            if following is None:
                return data
            name = following
        raise AssertionError(f"{execution.arn} goes round in circles at {name}")


class _State:
    def __init__(self, name: str, body: Mapping[str, Any]) -> None:
        self.name = name
        self._body = body
        self._kind = body["Type"]
        self._input = path(body.get("InputPath", "$"))
        template = body.get("Parameters", body.get("ItemSelector"))
        self._parameters = compiled_template(template) if template is not None else None
        selector = body.get("ResultSelector")
        self._selector = compiled_template(selector) if selector is not None else None
        self._result_path = body.get("ResultPath", "$")
        self._output = path(body.get("OutputPath", "$"))
        self._next = body.get("Next")
        self._retriers = body.get("Retry", ())
        self._catchers = body.get("Catch", ())
        if self._kind == "Choice":
            self._rules = [(compiled_rule(rule), rule["Next"]) for rule in body["Choices"]]
        if self._kind == "Map":
            processor = body.get("ItemProcessor", body.get("Iterator"))
            self._flow = _Flow(processor)
            self._items = path(body.get("ItemsPath", "$"))
        if self._kind not in ("Task", "Choice", "Pass", "Wait", "Succeed", "Fail", "Map"):
            raise NotImplementedError(self._kind)

    def run(
        self, execution: Execution, data: Json, context: Context, prefix: str
    ) -> Generator[Call, Fault | None, tuple[Json, str | None]]:
        match self._kind:
            case "Choice":
                for matches, following in self._rules:
                    if matches(data, context):
                        return data, following
                if "Default" not in self._body:
                    raise TaskFailedError("States.NoChoiceMatched")
                return data, self._body["Default"]
            case "Pass":
                result = self._body.get("Result")
                if result is None:
                    result = self._taken(data, context)
                return self._placed(data, result, context), self._next
            case "Wait":
                yield Call(execution, prefix + self.name, 0, "", None)
                return data, self._next
            case "Succeed":
                return self._output(self._input(data, context), context), None
            case "Fail":
                raise TaskFailedError(
                    self._text("Error", data, context), self._text("Cause", data, context)
                )
        return (yield from self._with_retries(execution, data, context, prefix))

    def _text(self, member: str, data: Json, context: Context) -> str:
        if f"{member}Path" in self._body:
            return str(intrinsic_or_path(self._body[f"{member}Path"])(data, context))
        return str(self._body.get(member, ""))

    def _taken(self, data: Json, context: Context) -> Json:
        data = self._input(data, context)
        return data if self._parameters is None else self._parameters(data, context)

    def _with_retries(
        self, execution: Execution, data: Json, context: Context, prefix: str
    ) -> Generator[Call, Fault | None, tuple[Json, str | None]]:
        counts: dict[int, int] = {}
        attempt = 0
        while True:
            try:
                if self._kind == "Map":
                    result = yield from self._map(execution, data, context, prefix)
                else:
                    result = yield from self._task(execution, data, context, prefix, attempt)
                if self._selector is not None:
                    result = self._selector(result, context)
                return self._placed(data, result, context), self._next
            except TaskFailedError as failure:
                if self._may_retry(failure.error, counts):
                    attempt += 1
                    continue
                for catcher in self._catchers:
                    if _error_matches(catcher["ErrorEquals"], failure.error):
                        told = {"Error": failure.error, "Cause": failure.cause}
                        where = catcher.get("ResultPath", "$")
                        return put(data, where, told), catcher["Next"]
                raise

    def _may_retry(self, error: str, counts: dict[int, int]) -> bool:
        for index, retrier in enumerate(self._retriers):
            if _error_matches(retrier["ErrorEquals"], error):
                counts[index] = counts.get(index, 0) + 1
                return counts[index] <= int(retrier.get("MaxAttempts", 3))
        return False

    def _task(
        self, execution: Execution, data: Json, context: Context, prefix: str, attempt: int
    ) -> Turns:
        resource, parameters = self._body["Resource"], self._taken(data, context)
        fault = yield Call(execution, prefix + self.name, attempt, resource, parameters)
        if fault is not None and not fault.after:
            raise TaskFailedError(fault.error, fault.cause)
        result = execution.services.perform(resource, parameters, execution)
        if fault is not None:
            if fault.error == "States.Timeout" and resource.endswith(".sync"):
                execution.services.abandon(parameters)
            raise TaskFailedError(fault.error, fault.cause)
        if resource.endswith(".sync"):
            late = yield Call(execution, prefix + self.name, attempt, "", parameters)
            if late is not None:
                raise TaskFailedError(late.error, late.cause)
            return execution.services.wait_for(parameters)
        return result

    def _map(self, execution: Execution, data: Json, context: Context, prefix: str) -> Turns:
        items = self._items(self._input(data, context), context)
        results: list[Json] = [None] * len(items)
        going: list[tuple[int, Turns, Call]] = []

        def begin(index: int, item: Json) -> None:
            within = {**context, "Map": {"Item": {"Index": index, "Value": item}}}
            given = item if self._parameters is None else self._parameters(data, within)
            turns = self._flow.run(execution, given, f"{prefix}{self.name}/")
            advance(index, turns, None)

        def advance(index: int, turns: Turns, fault: Fault | None) -> None:
            try:
                going.append((index, turns, turns.send(fault)))
            except StopIteration as end:
                results[index] = end.value

        for index, item in enumerate(items):
            begin(index, item)
        while going:
            index, turns, call = going.pop(0)  # in turn: as concurrent as one thread can be
            advance(index, turns, (yield call))
        return results

    def _placed(self, data: Json, result: Json, context: Context) -> Json:
        where = self._result_path
        data = data if where is None else put(data, where, result)
        return self._output(data, context)


def _error_matches(names: Sequence[str], error: str) -> bool:
    if error == "States.Runtime":
        return False
    if error in names:
        return True
    if "States.TaskFailed" in names and error != "States.Timeout":
        return True
    return "States.ALL" in names and error != "States.DataLimitExceeded"


def put(data: Json, where: str | None, value: Json) -> Json:
    """The data with a value at a reference path; the data itself stays as it is."""
    if where is None:
        return data
    if where == "$":
        return value
    changed = dict(data)
    current = changed
    *parents, last = where.removeprefix("$.").split(".")
    for part in parents:
        current[part] = dict(current.get(part) or {})
        current = current[part]
    current[last] = value
    return changed


# -- Paths, templates, intrinsic functions --------------------------------------------------------

_PART: Final = re.compile(
    r"\.(?P<name>[A-Za-z_][A-Za-z0-9_-]*)|\[(?P<index>\d+)\]|\['(?P<quoted>[^']+)'\]"
    r"|(?P<all>\[\*\]|\.\*)|\[\?\(@\.(?P<field>[\w.]+)\s*==\s*'(?P<wanted>[^']*)'\)\]"
)


@cache
def path(text: str | None) -> Getter:
    """Compiles a JSONPath; ``$$`` reads the context."""
    if text is None:
        return lambda _data, _context: {}
    if text == "$":
        return lambda data, _: data
    from_context = text.startswith("$$")
    rest = text[2:] if from_context else text[1:]
    parts, at = [], 0
    while at < len(rest):
        match = _PART.match(rest, at)
        if match is None:
            raise NotImplementedError(text)
        parts.append(match)
        at = match.end()
    keys: list[str | int] = [
        int(m["index"]) if m["index"] is not None else (m["name"] or m["quoted"] or "")
        for m in parts
    ]
    if any(m["all"] or m["field"] for m in parts):
        return _many(text, parts, from_context)

    def get(data: Json, context: Context) -> Json:
        current: Any = context if from_context else data
        try:
            for key in keys:
                current = current[key]
        except (KeyError, IndexError, TypeError):
            raise TaskFailedError("States.Runtime", f"{text} selects nothing") from None
        return current

    return get


def _many(text: str, parts: Sequence[re.Match[str]], from_context: bool) -> Getter:
    def get(data: Json, context: Context) -> Json:
        found: list[Any] = [context if from_context else data]
        for match in parts:
            following: list[Any] = []
            for value in found:
                if match["all"]:
                    following += value.values() if isinstance(value, dict) else value
                elif match["field"]:
                    following += [
                        item
                        for item in value
                        if str(_deep(item, match["field"])) == match["wanted"]
                    ]
                else:
                    key = match["name"] or match["quoted"]
                    index = match["index"]
                    if index is not None and isinstance(value, list):
                        following += value[int(index) : int(index) + 1]
                    elif isinstance(value, dict) and key in value:
                        following.append(value[key])
            found = following
        return found

    return get


def _deep(item: Json, field_path: str) -> Json:
    for part in field_path.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def compiled_template(template: Json) -> Getter:
    """Compiles a payload template (Parameters, ResultSelector, ItemSelector)."""
    if isinstance(template, dict):
        members: list[tuple[str, Getter]] = []
        fixed: dict[str, Any] = {}
        for name, value in template.items():
            if name.endswith(".$"):
                members.append((name[:-2], intrinsic_or_path(value)))
            elif _is_fixed(value):
                fixed[name] = value
            else:
                members.append((name, compiled_template(value)))

        def build(data: Json, context: Context) -> Json:
            made = dict(fixed)
            for member, get in members:
                made[member] = get(data, context)
            return made

        return build
    if isinstance(template, list) and not _is_fixed(template):
        parts = [compiled_template(value) for value in template]
        return lambda data, context: [part(data, context) for part in parts]
    return lambda _data, _context: template


def _is_fixed(value: Json) -> bool:
    if isinstance(value, dict):
        return all(not name.endswith(".$") and _is_fixed(part) for name, part in value.items())
    if isinstance(value, list):
        return all(_is_fixed(part) for part in value)
    return True


@cache
def intrinsic_or_path(text: str) -> Getter:
    """Compiles what stands behind a ``.$`` member."""
    if text.startswith("$"):
        return path(text)
    getter, rest = _argument(text)
    if rest.strip():
        raise NotImplementedError(text)
    return getter


_CALL: Final = re.compile(r"\s*States\.([A-Za-z0-9]+)\(")
_STRING: Final = re.compile(r"\s*'((?:[^'\\]|\\.)*)'")
_WORD: Final = re.compile(r"\s*([^,()\s]+)")


def _argument(text: str) -> tuple[Getter, str]:
    """Compiles one argument; returns it with what follows it."""
    if match := _CALL.match(text):
        function, rest = _FUNCTIONS[match[1]], text[match.end() :]
        arguments: list[Getter] = []
        while not rest.lstrip().startswith(")"):
            argument, rest = _argument(rest)
            arguments.append(argument)
            rest = rest.lstrip().removeprefix(",")
        return _called(match[1], function, arguments), rest.lstrip()[1:]
    if match := _STRING.match(text):
        value = re.sub(r"\\(.)", r"\1", match[1])
        return (lambda _data, _context: value), text[match.end() :]
    match = _WORD.match(text)
    if match is None:
        raise NotImplementedError(text)
    word, rest = match[1], text[match.end() :]
    if word.startswith("$"):
        return path(word), rest
    constant = json.loads(word)
    return (lambda _data, _context: constant), rest


def _called(name: str, function: Callable[..., Json], arguments: Sequence[Getter]) -> Getter:
    def call(data: Json, context: Context) -> Json:
        values = [argument(data, context) for argument in arguments]
        try:
            return function(*values)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise TaskFailedError("States.IntrinsicFailure", f"{name}: {error}") from error

    return call


def _shown(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _format(template: str, *values: Json) -> str:
    parts = template.split("{}")
    if len(parts) != len(values) + 1:
        raise ValueError(template)
    return "".join(
        part + shown for part, shown in zip(parts, [*map(_shown, values), ""], strict=True)
    )


def _merged(first: Mapping[str, Json], second: Mapping[str, Json], _deeply: bool) -> Json:
    return {**first, **second}


_FUNCTIONS: Final[Mapping[str, Callable[..., Json]]] = {
    "Format": _format,
    "StringToJson": json.loads,
    "JsonToString": lambda value: json.dumps(value, separators=(",", ":")),
    "JsonMerge": _merged,
    "Array": lambda *values: list(values),
    "ArrayGetItem": lambda values, index: values[index],
    "ArrayLength": len,
    "ArrayContains": lambda values, value: value in values,
    "ArrayPartition": lambda v, n: [v[i : i + n] for i in range(0, len(v), n)],
    "ArrayRange": lambda first, last, step: list(range(first, last + 1, step)),
    "MathAdd": lambda a, b: a + b,
    "StringSplit": lambda text, marks: [p for p in re.split(f"[{re.escape(marks)}]", text) if p],
    "Base64Encode": lambda text: base64.b64encode(text.encode()).decode(),
    "Hash": lambda value, algorithm: hashlib.new(
        algorithm.replace("-", "").lower(), _shown(value).encode(), usedforsecurity=False
    ).hexdigest(),
    "UUID": lambda: str(uuid.uuid4()),
}


# -- Choice rules ---------------------------------------------------------------------------------


def compiled_rule(rule: Mapping[str, Any]) -> Callable[[Json, Context], bool]:
    """Compiles one rule of a Choice."""
    if "And" in rule:
        parts = [compiled_rule(part) for part in rule["And"]]
        return lambda data, context: all(part(data, context) for part in parts)
    if "Or" in rule:
        parts = [compiled_rule(part) for part in rule["Or"]]
        return lambda data, context: any(part(data, context) for part in parts)
    if "Not" in rule:
        inner = compiled_rule(rule["Not"])
        return lambda data, context: not inner(data, context)
    get = path(rule["Variable"])
    ((test, wanted),) = (
        (k, v) for k, v in rule.items() if k not in ("Variable", "Next", "Comment")
    )
    if test == "IsPresent":
        return lambda data, context: _present(get, data, context) is wanted
    compare = _TESTS[test.removesuffix("Path")]
    if test.endswith("Path"):
        other = path(wanted)
        return lambda data, context: compare(get(data, context), other(data, context))
    return lambda data, context: compare(get(data, context), wanted)


def _present(get: Getter, data: Json, context: Context) -> bool:
    try:
        get(data, context)
    except TaskFailedError:
        return False
    return True


def _like(value: Json, pattern: str) -> bool:
    parts = (re.escape(part) for part in pattern.split("*"))
    return isinstance(value, str) and re.fullmatch(".*".join(parts), value, re.DOTALL) is not None


def _same(kind: type | tuple[type, ...]) -> Callable[[Json, Json], bool]:
    return lambda value, wanted: isinstance(value, kind) and value == wanted


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TESTS: Final[Mapping[str, Callable[[Json, Json], bool]]] = {
    "StringEquals": _same(str),
    "StringMatches": _like,
    "BooleanEquals": _same(bool),
    "NumericEquals": lambda value, wanted: _number(value) and value == wanted,
    "NumericGreaterThan": lambda value, wanted: _number(value) and value > wanted,
    "NumericGreaterThanEquals": lambda value, wanted: _number(value) and value >= wanted,
    "NumericLessThan": lambda value, wanted: _number(value) and value < wanted,
    "NumericLessThanEquals": lambda value, wanted: _number(value) and value <= wanted,
    "IsNull": lambda value, wanted: (value is None) is wanted,
    "IsString": lambda value, wanted: isinstance(value, str) is wanted,
    "IsNumeric": lambda value, wanted: _number(value) is wanted,
    "IsBoolean": lambda value, wanted: isinstance(value, bool) is wanted,
}
