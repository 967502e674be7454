"""A path that selects nothing ends the execution.

Step Functions developer guide, "Handling errors": "States.Runtime: An execution failed due to some
exception that it couldn't process. Often these errors are caused by errors at runtime, such as
attempting to apply InputPath or OutputPath on a null JSON payload." The console words it "The
JSONPath '$.x' specified for the field 'y.$' could not be found in the input"; for Choice,
"Invalid path '$.x': The choice state's condition path references an invalid value."
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from limner.local.json_types import Json
from limner.local.seams import Module

# No more of the data than this in a Cause.
_SHOWN_CHARACTERS = 200


def install(engine: Module) -> None:
    """Installs the corrections of this module."""
    engine._resolve_params_obj = _template(engine)
    engine._eval_intrinsic_arg = _intrinsic_argument(engine)
    engine._apply_input_path = _field(engine, engine._apply_input_path, "InputPath")
    engine._apply_output_path = _field(engine, engine._apply_output_path, "OutputPath")
    engine._evaluate_rule = _choice_rule(engine)


def selects_nothing(engine: Module, path: str, data: object) -> bool:
    """Whether a reference path finds no value; paths with wildcards always find a list."""
    tokens = engine._parse_jsonpath_tokens(path)
    if tokens is None:
        return False
    current = data
    for kind, key in tokens:
        if kind == "wildcard":
            return False
        container = dict if kind == "field" else list
        if not isinstance(current, container) or not _has(current, key):
            return True
        current = current[key]
    return False


def _has(container: Json, key: Json) -> bool:
    return key in container if isinstance(container, dict) else bool(key < len(container))


def _is_data_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("$") and not value.startswith("$$")


def _not_found(engine: Module, path: str, name: str, data: object) -> Exception:
    shown = json.dumps(data, default=str)[:_SHOWN_CHARACTERS]
    error: Exception = engine._ExecutionError(
        "States.Runtime",
        f"The JSONPath '{path}' specified for the field '{name}' could not be found in the input "
        f"'{shown}'",
    )
    return error


def _template(engine: Module) -> Callable[..., Any]:
    resolve = engine._resolve_params_obj

    def resolve_template(template: object, data: object, context: object = None) -> Json:
        if isinstance(template, dict):
            for name, value in template.items():
                if not (name.endswith(".$") and isinstance(value, str)):
                    continue
                if _is_data_path(value) and selects_nothing(engine, value, data):
                    raise _not_found(engine, value, name, data)
                if (
                    context is not None
                    and value.startswith("$$.")
                    and selects_nothing(engine, value[1:], context)
                ):
                    raise _not_found(engine, value, name, {})
        return resolve(template, data, context)

    return resolve_template


def _intrinsic_argument(engine: Module) -> Callable[..., Any]:
    evaluate = engine._eval_intrinsic_arg

    def evaluate_argument(argument: tuple[Any, ...], data: object, context: object) -> Json:
        if argument[0] == "path" and _is_data_path(argument[1]):
            path = argument[1]
            if selects_nothing(engine, path, data):
                raise _not_found(engine, path, "intrinsic function", data)
        return evaluate(argument, data, context)

    return evaluate_argument


def _field(engine: Module, apply: Callable[..., Any], name: str) -> Callable[..., Any]:
    def apply_path(state: dict[str, Any], data: object, context: object = None) -> Json:
        path = state.get(name, "$")
        if _is_data_path(path) and selects_nothing(engine, path, data):
            raise _not_found(engine, path, name, data)
        return apply(state, data, context)

    return apply_path


def _choice_rule(engine: Module) -> Callable[..., bool]:
    evaluate = engine._evaluate_rule

    def evaluate_rule(rule: dict[str, Any], data: object, context: object = None) -> bool:
        variable = rule.get("Variable")
        if (
            _is_data_path(variable)
            and "IsPresent" not in rule
            and selects_nothing(engine, str(variable), data)
        ):
            raise engine._ExecutionError(
                "States.Runtime",
                f"Invalid path '{variable}': The choice state's condition path references an "
                "invalid value.",
            )
        return bool(evaluate(rule, data, context))

    return evaluate_rule
