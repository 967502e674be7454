"""The edge of every command: errors become text, JSON and exit codes here, and only here."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Final, ParamSpec

import typer

from limner.cli import output
from limner.cli.options import Debug
from limner.contracts.errors import LimnerError

FAILED: Final = 1
BAD_INPUT: Final = 2
NOT_THERE: Final = 3
NOT_FOUND: Final = 4
NOT_YET: Final = 5
BUG: Final = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

_CODES: Final[dict[str, int]] = {
    "INVALID_INPUT": BAD_INPUT,
    "PHOTO_NOT_AN_IMAGE": BAD_INPUT,
    "PHOTO_TOO_SMALL": BAD_INPUT,
    "PHOTO_TOO_LARGE": BAD_INPUT,
    "TOO_FEW_PHOTOS": BAD_INPUT,
    "TOO_MANY_PHOTOS": BAD_INPUT,
    "REQUEST_CONFLICT": BAD_INPUT,
    "LAPTOP_NOT_RUNNING": NOT_THERE,
    "LAPTOP_START_FAILED": NOT_THERE,
    "NOT_DEPLOYED": NOT_THERE,
    "REQUEST_NOT_FOUND": NOT_FOUND,
    "MODEL_NOT_FOUND": NOT_FOUND,
    "VERSION_NOT_FOUND": NOT_FOUND,
    "MODEL_NOT_READY": NOT_YET,
    "MODEL_LOADING": NOT_YET,
    "MODEL_BUSY": NOT_YET,
    "MODEL_CHANGED": NOT_YET,
    "DEADLINE_EXCEEDED": NOT_YET,
    "THROTTLED": NOT_YET,
    "INTERNAL": BUG,
}

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 the work failed, or AWS refused; 2 wrong usage, input or photos; "
    "3 not running or not deployed; 4 no such user, model, version or request; "
    "5 not yet: try again later; 70 a bug in Limner; 130 interrupted."
)

P = ParamSpec("P")


def exit_code(error: LimnerError) -> int:
    """The exit code of an error; 1 where there is no special one."""
    return _CODES.get(error.code, FAILED)


def guarded(command: Callable[P, None]) -> Callable[..., None]:
    """Wraps a command: a ``LimnerError`` is told with its fix, anything else is our bug.

    The wrapped command has one more option, ``--debug``; its own ``as_json`` is looked at too.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.pop("debug", False))
        as_json = bool(kwargs.get("as_json", False))
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise  # typer's own affairs
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED) from interrupt
        except LimnerError as error:
            raise _told(error, as_json=as_json, debug=debug) from error
        except Exception as bug:
            detail = f"{type(bug).__name__}: {bug} (--debug shows where)."
            internal = LimnerError("INTERNAL", detail)
            raise _told(internal, as_json=as_json, debug=debug) from bug

    _add_debug(run, inspect.signature(command, eval_str=True))
    return run


def _add_debug(run: Callable[..., None], signature: inspect.Signature) -> None:
    """Gives a wrapper the option ``--debug``, in the two places where typer looks for options."""
    debug = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug
    )
    parameters = [*signature.parameters.values(), debug]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {**run.__annotations__, "debug": Debug}


def _told(error: LimnerError, *, as_json: bool, debug: bool) -> typer.Exit:
    if debug:
        output.note(traceback.format_exc().rstrip())
    output.failure(error, as_json=as_json)
    return typer.Exit(exit_code(error))
