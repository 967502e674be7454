"""Asynchronous invocations of functions, by rules, notifications and InvocationType Event.

Lambda developer guide, "How Lambda handles errors and retries with asynchronous invocation": "By
default, Lambda retries an asynchronous invocation twice if the function returns an error, with a
one-minute wait between the first two attempts, and two minutes between the second and third
attempts"; then the event goes to the on-failure destination or the dead-letter queue. ministack
knows that, but waits one real second; here the waits follow the laptop's clock.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final

from limner.local.clock import Clock
from limner.local.seams import Module

_RETRIES: Final = 2
_FIRST_WAIT_S: Final = 60.0


def install(functions: Module, clock: Clock) -> None:
    """Installs the correction of this module."""
    functions.invoke_async_with_retry = _invoke_async(functions, clock)


def _invoke_async(
    functions: Module, clock: Clock
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def invoke_async(function: dict[str, Any], event: dict[str, Any]) -> None:
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run,
            args=(_invoke, functions, clock, function, event),
            name="invoke-async",
            daemon=True,
        ).start()

    return invoke_async


def _invoke(
    functions: Module, clock: Clock, function: dict[str, Any], event: dict[str, Any]
) -> None:
    config = function.get("config") or function
    settings = (
        function.get("event_invoke_config")
        or (function.get("event_invoke_configs") or {}).get("$LATEST")
        or {}
    )
    retries = int(settings.get("MaximumRetryAttempts", _RETRIES))
    for attempt in range(retries + 1):
        if attempt:
            clock.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
        result = functions._execute_function(function, event)
        if not result.get("error"):
            return
    target = (
        settings.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        or (config.get("DeadLetterConfig") or {}).get("TargetArn")
        or ""
    )
    if target:
        functions._route_async_failure(target, config.get("FunctionName", ""), event, result)
