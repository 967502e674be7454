"""Checks requests against AWS's own description of its API, which ships with botocore.

botocore itself checks types and required members only; the service also checks lengths, ranges,
patterns and enumerations, and so do we.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from limner.local.errors import validation
from limner.local.json_types import Json

if TYPE_CHECKING:
    from botocore.model import ServiceModel

# A shape of botocore; its kinds share no typed base with the members that are read here.
_Shape: TypeAlias = Any

# Java's character classes in Python's words.
_CLASSES = {r"\p{Print}": r"[ -~]", r"\p{L}": r"[^\W\d_]", r"\p{N}": r"\d", r"\z": r"\Z"}


@cache
def _model() -> ServiceModel:
    import botocore.session  # 0.3 s, and only the first request needs it

    return botocore.session.get_session().get_service_model("sagemaker")


def check(operation: str, request: Mapping[str, Any]) -> None:
    """Checks the body of a SageMaker request.

    Args:
        operation: Name in the API model, e.g. ``CreateTrainingJob``.
        request: The body.

    Raises:
        ServiceError: ``ValidationException`` that names all faults in AWS's words.
    """
    shape = _model().operation_model(operation).input_shape
    faults = list(_faults(shape, request, "")) if shape is not None else []
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected: "
        raise validation(count + "; ".join(faults))


def known_operation(operation: str) -> bool:
    """Whether SageMaker has an operation of this name."""
    return operation in _model().operation_names


def _faults(shape: _Shape, value: Json, path: str) -> Iterator[str]:
    expected: Any = {
        "structure": dict,
        "map": dict,
        "list": list,
        "string": str,
        "integer": int,
        "long": int,
        "float": (int, float),
        "double": (int, float),
        "boolean": bool,
    }.get(shape.type_name, object)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is int):
        yield f"Value at '{path}' failed to satisfy constraint: Member must be a {shape.type_name}"
        return
    yield from _own_faults(shape, value, path)
    if shape.type_name == "structure":
        yield from _member_faults(shape, value, path)
    elif shape.type_name == "list":
        for index, item in enumerate(value, 1):
            yield from _faults(shape.member, item, f"{path}.{index}.member")
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from _faults(shape.key, key, f"{path}.{key}.key")
            yield from _faults(shape.value, item, f"{path}.{key}.member")


def _member_faults(shape: _Shape, value: Mapping[str, Any], path: str) -> Iterator[str]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield (
                f"Value null at '{_join(path, name)}' failed to satisfy constraint: "
                "Member must not be null"
            )
    for name, item in value.items():
        if name not in shape.members:
            yield f"Unknown member '{_join(path, name)}'"
        elif item is not None:
            yield from _faults(shape.members[name], item, _join(path, name))


def _own_faults(shape: _Shape, value: Json, path: str) -> Iterator[str]:
    failed = f"Value at '{path}' failed to satisfy constraint: Member must"
    rules = shape.metadata
    size = value if isinstance(value, int | float) else len(value)
    noun = "have value" if isinstance(value, int | float) else "have length"
    if "min" in rules and size < rules["min"]:
        yield f"{failed} {noun} greater than or equal to {rules['min']}"
    if "max" in rules and size > rules["max"]:
        yield f"{failed} {noun} less than or equal to {rules['max']}"
    if isinstance(value, str) and "enum" in rules and value not in rules["enum"]:
        yield f"{failed} satisfy enum value set: [{', '.join(rules['enum'])}]"
    if isinstance(value, str) and not _matches(rules.get("pattern"), value):
        yield f"{failed} satisfy regular expression pattern: {rules['pattern']}"


def _matches(pattern: str | None, value: str) -> bool:
    if pattern is None:
        return True
    for java, python in _CLASSES.items():
        pattern = pattern.replace(f"[{java}]", python).replace(java, python)
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:
        return True  # Java's syntax, not Python's; the laptop then checks one rule less


def _join(path: str, name: str) -> str:
    name = name[0].lower() + name[1:]
    return f"{path}.{name}" if path else name
