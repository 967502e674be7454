"""How each question ends, in whichever shell it was asked: an error by its name, and one line."""

from __future__ import annotations

import time

from inference.logs import log
from limner.contracts.errors import LimnerError

Facts = dict[str, object]
"""What is added to a question's line in the log."""


def stopped() -> LimnerError:
    """What whoever is still waiting is told when the server shuts down."""
    return LimnerError("GENERATION_FAILED", "The server is shutting down.")


def named(event: str, facts: Facts, raised: Exception) -> LimnerError:
    """The registry's error for an exception that is being handled.

    One that is not the registry's is a bug: its type and place are logged, and it is ``INTERNAL``.
    """
    if isinstance(raised, LimnerError):
        return raised
    error = LimnerError("INTERNAL")
    log(f"{event} failed", {**facts, "code": error.code}, failed=True)
    return error


def report(event: str, facts: Facts, error: LimnerError | None, started: float) -> None:
    """Writes the one line of a question.

    Args:
        event: What was asked.
        facts: What else the line holds; gets its code, status and milliseconds.
        error: What it was answered with, if not with what was asked for.
        started: ``perf_counter`` of its beginning.
    """
    if error:
        facts["code"] = error.code
    facts["status"] = error.spec.http_status if error else 200
    facts["total_ms"] = round((time.perf_counter() - started) * 1000, 2)
    log(event, facts)
