"""Which errors a Retry or a Catch can match.

Step Functions developer guide, "Handling errors in Step Functions workflows": "A States.Runtime
error isn't retriable, and will always cause the execution to fail. A retry or catch on States.ALL
won't catch States.Runtime errors." and "States.DataLimitExceeded ... can't be caught by the
States.ALL error type."
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limner.local.seams import Module

_NEVER = frozenset({"States.Runtime", "Limner.ExecutionEnded"})
_ONLY_BY_NAME = frozenset({"States.DataLimitExceeded"})


def install(engine: Module) -> None:
    """Installs the correction of this module."""
    engine._error_matches = _error_matches(engine._error_matches)
    engine._evaluate_intrinsic = _intrinsic_failure(engine)


def _error_matches(
    matches: Callable[[list[str], str], bool],
) -> Callable[[list[str], str], bool]:
    def error_matches(error_equals: list[str], error: str) -> bool:
        if error in _NEVER:
            return False
        if error in _ONLY_BY_NAME:
            return error in error_equals
        return matches(error_equals, error)

    return error_matches


def _intrinsic_failure(engine: Module) -> Callable[[str, object, object], object]:
    """An intrinsic function that fails has an error name of its own.

    Developer guide, same page: "States.IntrinsicFailure: An attempt to invoke an intrinsic
    function within a payload template failed."
    """
    engine._exec_intrinsic = _positions_from_zero(engine)
    evaluate = engine._evaluate_intrinsic

    def evaluate_intrinsic(expression: str, data: object, context: object) -> object:
        try:
            return evaluate(expression, data, context)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise engine._ExecutionError(
                "States.IntrinsicFailure", f"The function '{expression}' failed: {error}"
            ) from error

    return evaluate_intrinsic


def _positions_from_zero(engine: Module) -> Callable[..., object]:
    """States.ArrayGetItem counts from 0 upwards; Python would count negative ones from the end."""
    execute = engine._exec_intrinsic

    def execute_intrinsic(node: tuple[str, str, Any], data: object, context: object) -> object:
        if node[1] == "States.ArrayGetItem":
            position = engine._eval_intrinsic_arg(node[2][-1], data, context)
            if position < 0:
                raise IndexError(f"there is no position {position}")
        result: object = execute(node, data, context)
        return result

    return execute_intrinsic
