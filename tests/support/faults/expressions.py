"""DynamoDB's condition and update expressions, compiled to closures and cached by their text.

moto's own parser reads an expression anew at each call, in about a millisecond; the property tests
make millions of calls. Both are compared on every expression of Limner, over random items
(``tests/faults/test_expressions.py``).

Values stay in DynamoDB's wire form (``{"S": "x"}``). From the developer guide, "Comparison operator
and function reference": operands of different types are not equal; what is compared with an
attribute that does not exist is false, but for ``<>``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Final, TypeAlias

Value: TypeAlias = Mapping[str, Any]
Item: TypeAlias = dict[str, Any]
Names: TypeAlias = Mapping[str, str]
Values: TypeAlias = Mapping[str, Value]
Condition: TypeAlias = Callable[[Item, Names, Values], bool]
Operand: TypeAlias = Callable[[Item, Names, Values], Value | None]
Path: TypeAlias = tuple[str | int, ...]
Update: TypeAlias = Callable[[Item, Names, Values], Item]

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<name>[#:]?[A-Za-z_][A-Za-z0-9_]*)|(?P<number>\d+)|(?P<sign><>|<=|>=|[=<>(),.+\-\[\]]))"
)
_ORDERINGS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CLAUSES: Final = ("SET", "REMOVE", "ADD", "DELETE")


class InvalidExpressionError(ValueError):
    """DynamoDB would answer ValidationException."""


@cache
def condition(text: str) -> Condition:
    """Compiles a ConditionExpression, FilterExpression or KeyConditionExpression."""
    reader = _Reader(text)
    compiled = _or(reader)
    reader.end()
    return compiled


@cache
def update(text: str) -> Update:
    """Compiles an UpdateExpression; the result gives a new item and leaves the old one alone."""
    reader = _Reader(text)
    actions: list[Callable[[Item, Item, Names, Values], None]] = []
    while not reader.done:
        clause = reader.next().upper()
        if clause not in _CLAUSES:
            raise InvalidExpressionError(f"{clause} in {text}")
        while True:
            actions.append(_ACTIONS[clause](reader))
            if not reader.take(","):
                break

    def apply(item: Item, names: Names, values: Values) -> Item:
        changed = dict(item)
        for action in actions:
            action(item, changed, names, values)
        return changed

    return apply


def equal(left: Value | None, right: Value | None) -> bool:
    """Whether two values are the same value of the same type."""
    if left is None or right is None:
        return False
    if left == right:
        return True
    return "N" in left and "N" in right and Decimal(left["N"]) == Decimal(right["N"])


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        position = 0
        stripped = text.rstrip()
        while position < len(stripped):
            match = _TOKEN.match(stripped, position)
            if match is None:
                raise InvalidExpressionError(text)
            self._tokens.append(match[0].strip())
            position = match.end()
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at == len(self._tokens)

    def peek(self) -> str:
        return "" if self.done else self._tokens[self._at]

    def next(self) -> str:
        token = self.peek()
        if not token:
            raise InvalidExpressionError(f"{self._text} ends too early")
        self._at += 1
        return token

    def take(self, word: str) -> bool:
        if self.peek().upper() == word:
            self._at += 1
            return True
        return False

    def want(self, word: str) -> None:
        if not self.take(word):
            raise InvalidExpressionError(f"{word} is missing in {self._text}")

    def end(self) -> None:
        if not self.done:
            raise InvalidExpressionError(f"{self.peek()} in {self._text}")


# -- Conditions -----------------------------------------------------------------------------------


def _or(reader: _Reader) -> Condition:
    parts = [_and(reader)]
    while reader.take("OR"):
        parts.append(_and(reader))
    if len(parts) == 1:
        return parts[0]

    def any_of(item: Item, names: Names, values: Values) -> bool:
        for part in parts:  # noqa: SIM110  # a generator costs more than the parts
            if part(item, names, values):
                return True
        return False

    return any_of


def _and(reader: _Reader) -> Condition:
    parts = [_not(reader)]
    while reader.take("AND"):
        parts.append(_not(reader))
    if len(parts) == 1:
        return parts[0]

    def all_of(item: Item, names: Names, values: Values) -> bool:
        for part in parts:  # noqa: SIM110
            if not part(item, names, values):
                return False
        return True

    return all_of


def _not(reader: _Reader) -> Condition:
    if reader.take("NOT"):
        part = _not(reader)
        return lambda item, names, values: not part(item, names, values)
    if reader.take("("):
        inner = _or(reader)
        reader.want(")")
        return inner
    function = _FUNCTIONS.get(reader.peek())
    if function is not None:
        reader.next()
        reader.want("(")
        compiled = function(reader)
        reader.want(")")
        return compiled
    return _comparison(reader)


def _comparison(reader: _Reader) -> Condition:
    left = _operand(reader)
    sign = reader.next().upper()
    if sign == "IN":
        reader.want("(")
        options = [_operand(reader)]
        while reader.take(","):
            options.append(_operand(reader))
        reader.want(")")
        return lambda i, n, v: (
            (value := left(i, n, v)) is not None and any(equal(value, o(i, n, v)) for o in options)
        )
    right = _operand(reader)
    if sign == "BETWEEN":
        reader.want("AND")
        high = _operand(reader)
        return lambda i, n, v: (
            _ordered(operator.ge, left(i, n, v), right(i, n, v))
            and _ordered(operator.le, left(i, n, v), high(i, n, v))
        )
    if sign == "=":
        return lambda i, n, v: equal(left(i, n, v), right(i, n, v))
    if sign == "<>":
        return lambda i, n, v: not equal(left(i, n, v), right(i, n, v))
    if sign not in _ORDERINGS:
        raise InvalidExpressionError(f"{sign} is no comparison")
    compare = _ORDERINGS[sign]
    return lambda i, n, v: _ordered(compare, left(i, n, v), right(i, n, v))


def _ordered(compare: Callable[[Any, Any], bool], left: Value | None, right: Value | None) -> bool:
    if left is None or right is None:
        return False
    ((kind, a),), ((other, b),) = left.items(), right.items()
    if kind != other or kind not in ("S", "N", "B"):
        return False
    return compare(Decimal(a), Decimal(b)) if kind == "N" else compare(a, b)


def _exists(reader: _Reader) -> Condition:
    look = _at(_path(reader))
    return lambda i, n, v: look(i, n, v) is not None


def _not_exists(reader: _Reader) -> Condition:
    look = _at(_path(reader))
    return lambda i, n, v: look(i, n, v) is None


def _has_type(reader: _Reader) -> Condition:
    look, kind = _two(reader)
    return lambda i, n, v: (
        (found := look(i, n, v)) is not None and next(iter(found)) == (kind(i, n, v) or {}).get("S")
    )


def _begins_with(reader: _Reader) -> Condition:
    look, start = _two(reader)
    return lambda i, n, v: (
        (look(i, n, v) or {}).get("S", "").startswith((start(i, n, v) or {}).get("S", "\0"))
    )


def _contains(reader: _Reader) -> Condition:
    look, part = _two(reader)

    def contains(item: Item, names: Names, values: Values) -> bool:
        whole, wanted = look(item, names, values), part(item, names, values)
        if whole is None or wanted is None:
            return False
        ((kind, content),) = whole.items()
        if kind == "L":
            return any(equal(member, wanted) for member in content)
        ((wanted_kind, text),) = wanted.items()
        return kind in (wanted_kind, f"{wanted_kind}S") and text in content

    return contains


def _two(reader: _Reader) -> tuple[Operand, Operand]:
    first = _operand(reader)
    reader.want(",")
    return first, _operand(reader)


_FUNCTIONS: Final[dict[str, Callable[[_Reader], Condition]]] = {
    "attribute_exists": _exists,
    "attribute_not_exists": _not_exists,
    "attribute_type": _has_type,
    "begins_with": _begins_with,
    "contains": _contains,
}


# -- Operands and paths ---------------------------------------------------------------------------


def _operand(reader: _Reader) -> Operand:
    token = reader.peek()
    if token.startswith(":"):
        reader.next()
        return lambda _i, _n, values: values[token]
    if token == "size":
        reader.next()
        reader.want("(")
        look = _at(_path(reader))
        reader.want(")")
        return lambda i, n, v: (
            None
            if (found := look(i, n, v)) is None
            else {"N": str(len(next(iter(found.values()))))}
        )
    return _at(_path(reader))


def _path(reader: _Reader) -> Path:
    parts: list[str | int] = [reader.next()]
    while True:
        if reader.take("."):
            parts.append(reader.next())
        elif reader.take("["):
            parts.append(int(reader.next()))
            reader.want("]")
        else:
            return tuple(parts)


def _at(path: Path) -> Operand:
    if len(path) == 1:
        (name,) = path
        return lambda item, names, _: item.get(names.get(name, name))

    def look(item: Item, names: Names, _: Values) -> Value | None:
        current: Any = {"M": item}
        for part in path:
            if isinstance(part, int):
                members = current.get("L", ())
                current = members[part] if part < len(members) else None
            else:
                current = current.get("M", {}).get(names.get(part, part))
            if current is None:
                return None
        found: Value = current
        return found

    return look


def _parent(item: Item, path: Path, names: Names) -> tuple[Any, str | int]:
    """The container of a path's last part, copied on the way: old items stay as they are."""
    if len(path) == 1:
        return item, names.get(str(path[0]), str(path[0]))
    current: Any = item
    for position, part in enumerate(path[:-1]):
        key: Any = part if isinstance(part, int) else names.get(part, part)
        try:
            value = current[key]
        except (KeyError, IndexError) as error:
            raise InvalidExpressionError(f"{path} does not exist in the item") from error
        kind = "L" if isinstance(path[position + 1], int) else "M"
        if kind not in value:
            raise InvalidExpressionError(f"{path} does not exist in the item")
        copied = list(value[kind]) if kind == "L" else dict(value[kind])
        current[key] = {kind: copied}
        current = copied
    last = path[-1]
    return current, last if isinstance(last, int) else names.get(last, last)


# -- Updates --------------------------------------------------------------------------------------

Action: TypeAlias = Callable[[Item, Item, Names, Values], None]


def _set(reader: _Reader) -> Action:
    path = _path(reader)
    reader.want("=")
    value = _sum(reader)

    def act(old: Item, new: Item, names: Names, values: Values) -> None:
        found = value(old, names, values)
        if found is None:
            raise InvalidExpressionError(f"an operand of SET {path} does not exist in the item")
        container, key = _parent(new, path, names)
        if isinstance(container, list) and isinstance(key, int) and key >= len(container):
            container.append(found)
        else:
            container[key] = found

    return act


def _sum(reader: _Reader) -> Operand:
    left = _term(reader)
    for sign, combine in (("+", operator.add), ("-", operator.sub)):
        if reader.take(sign):
            return _combined(left, combine, _term(reader))
    return left


def _combined(left: Operand, combine: Callable[[Any, Any], Any], right: Operand) -> Operand:
    def value(item: Item, names: Names, values: Values) -> Value | None:
        a, b = left(item, names, values), right(item, names, values)
        if a is None or b is None or "N" not in a or "N" not in b:
            raise InvalidExpressionError("arithmetic needs two numbers that exist")
        return {"N": str(combine(Decimal(a["N"]), Decimal(b["N"])))}

    return value


def _term(reader: _Reader) -> Operand:
    if reader.take("("):
        inner = _sum(reader)
        reader.want(")")
        return inner
    if reader.peek() == "if_not_exists":
        reader.next()
        reader.want("(")
        look = _at(_path(reader))
        reader.want(",")
        other = _sum(reader)
        reader.want(")")
        return lambda i, n, v: found if (found := look(i, n, v)) is not None else other(i, n, v)
    if reader.peek() == "list_append":
        reader.next()
        reader.want("(")
        first = _term(reader)
        reader.want(",")
        second = _term(reader)
        reader.want(")")
        return lambda i, n, v: {
            "L": [*(first(i, n, v) or {"L": []})["L"], *(second(i, n, v) or {"L": []})["L"]]
        }
    return _operand(reader)


def _remove(reader: _Reader) -> Action:
    path = _path(reader)
    look = _at(path)

    def act(old: Item, new: Item, names: Names, values: Values) -> None:
        if look(new, names, values) is not None:
            container, key = _parent(new, path, names)
            del container[key]

    return act


def _add(reader: _Reader) -> Action:
    path, value = _path(reader), None
    value = _operand(reader)
    look = _at(path)

    def act(old: Item, new: Item, names: Names, values: Values) -> None:
        before, more = look(old, names, values), value(old, names, values)
        container, key = _parent(new, path, names)
        if more is None:
            raise InvalidExpressionError("ADD needs a value")
        ((kind, content),) = more.items()
        if before is None:
            container[key] = more
        elif kind not in before:
            raise InvalidExpressionError("ADD needs a value of the attribute's own type")
        elif kind == "N":
            container[key] = {"N": str(Decimal(before["N"]) + Decimal(content))}
        else:
            container[key] = {kind: sorted({*before[kind], *content})}

    return act


def _delete(reader: _Reader) -> Action:
    path = _path(reader)
    value, look = _operand(reader), _at(path)

    def act(old: Item, new: Item, names: Names, values: Values) -> None:
        before, less = look(old, names, values), value(old, names, values)
        if before is None or less is None:
            return
        ((kind, content),) = less.items()
        left = sorted(set(before.get(kind, ())) - set(content))
        container, key = _parent(new, path, names)
        if left:
            container[key] = {kind: left}
        else:
            del container[key]

    return act


_ACTIONS: Final[dict[str, Callable[[_Reader], Action]]] = {
    "SET": _set,
    "REMOVE": _remove,
    "ADD": _add,
    "DELETE": _delete,
}
