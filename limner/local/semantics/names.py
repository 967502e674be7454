"""Error names: what AWS calls the failures of Lambda functions and of SNS.

Step Functions developer guide, "Handling errors", on Lambda: the error name is the function's own
error type ("the error name is the name of the exception class, such as ``CustomError``", in the
handler's language). SNS: the code of the API's error, e.g. ``SNS.NotFoundException``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from limner.contracts.errors import LimnerError
from limner.local.json_types import Json
from limner.local.seams import Module

_SNS_PUBLISH = "arn:aws:states:::sns:publish"
# The worker writes the message alone; ours puts the class before it, behind a separator that no
# message carries.
_SEPARATOR = "\x1f"
_REPORTS = '"error": str(e), "trace": traceback.format_exc()})'
_REPORTS_TYPE = '"error": type(e).__name__ + "\\x1f" + str(e), "trace": traceback.format_exc()})'


def install(engine: Module, runtime: Module, functions: Module) -> None:
    """Installs the corrections of this module.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, if ministack's worker reports errors otherwise.
    """
    if _REPORTS not in runtime._PYTHON_WORKER_SCRIPT:
        raise LimnerError(
            "LAPTOP_START_FAILED", "ministack's Lambda worker reports errors in an unknown form."
        )
    runtime._PYTHON_WORKER_SCRIPT = runtime._PYTHON_WORKER_SCRIPT.replace(_REPORTS, _REPORTS_TYPE)
    functions._execute_function = _typed(functions._execute_function)
    engine._SERVICE_DISPATCH[_SNS_PUBLISH] = _named(engine)


def _typed(execute: Callable[..., Any]) -> Callable[..., Any]:
    def execute_function(*arguments: Json, **options: Json) -> Json:
        reply = execute(*arguments, **options)
        body = reply.get("body") if isinstance(reply, dict) and reply.get("error") else None
        if isinstance(body, dict) and _SEPARATOR in str(body.get("errorMessage", "")):
            kind, message = body["errorMessage"].split(_SEPARATOR, 1)
            return {**reply, "body": {**body, "errorType": kind, "errorMessage": message}}
        return reply

    return execute_function


def _named(engine: Module) -> Callable[[str, Any], Any]:
    publish = engine._SERVICE_DISPATCH[_SNS_PUBLISH]

    def sns_publish(resource: str, data: Json) -> Json:
        try:
            return publish(resource, data)
        except engine._ExecutionError as error:
            code = re.search(r"<Code>(\w+?)(?:Exception)?</Code>", error.cause)
            if error.error == "SNS.PublishFailed" and code:
                name = f"SNS.{code[1]}Exception"
                raise engine._ExecutionError(name, error.cause) from error
            raise

    return sns_publish
