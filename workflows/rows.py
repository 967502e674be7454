"""The rows that both machines write, and the words in which they do.

Both machines carry the same fields at the top of a request's state: ``request_id``, ``user_id``,
``model_id``, ``attempt``, and, once it is planned, ``version`` and ``job``.
"""

from __future__ import annotations

from typing import Final

from workflows.tasks import text

ME: Final = text("$$.Execution.Id")
NOW: Final = text("$$.State.EnteredTime")
REQUEST_KEY: Final = {"request_id": text("$.request_id")}
MODEL_KEY: Final = {"user_id": text("$.user_id"), "model_row": text("$.model_id")}
VERSION_KEY: Final = {"user_id": text("$.user_id"), "model_row": text("$.version.row")}


def fill(template: str, *paths: str) -> str:
    """The intrinsic that fills a template of ``limner.contracts.keys`` from JSONPaths."""
    return f"States.Format('{template}', {', '.join(paths)})"
