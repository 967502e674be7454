"""The functions' log: one JSON object a line, identifiers and codes only, never a user's text."""

from __future__ import annotations

import json
import logging
from typing import Final

_FIELDS: Final = "limner_fields"


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: level, event, and the fields of ``log_event``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line = {
            "level": record.levelname,
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line)


def logger(name: str) -> logging.Logger:
    """A logger that writes JSON lines; call it once a function, at its cold start."""
    made = logging.getLogger(f"limner.{name}")
    if not made.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        made.addHandler(handler)
        made.setLevel(logging.INFO)
        made.propagate = False  # the runtime's own handler would write each line again
    return made


def log_event(log: logging.Logger, event: str, **fields: str | int | float | bool | None) -> None:
    """Writes one line.

    Args:
        log: A logger from ``logger``.
        event: What happened, in a few fixed words.
        **fields: Identifiers, codes and figures.
    """
    log.info(event, extra={_FIELDS: fields})
