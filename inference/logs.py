"""Logs: one JSON object a line, with timings and hashes, never with prompts or user ids."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime

from limner.contracts.metrics import fingerprint

# Named here too, for those who write lines.
__all__ = ["JsonLines", "fingerprint", "log", "set_up"]

_LOGGER = logging.getLogger("limner.inference")


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    Of an exception it gives the type and the place, not the text: a library may quote its input,
    which can be a prompt.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; ``fields`` of the record are entries of the object."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.name == _LOGGER.name else record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            kind, _, trace = record.exc_info
            entry["exception"] = kind.__name__
            entry["where"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(trace)[-8:]
            ]
        return json.dumps(entry)


def set_up() -> None:
    """Sends the records of this process, uvicorn's too, to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _LOGGER.setLevel(logging.INFO)


def log(event: str, fields: Mapping[str, object], *, failed: bool = False) -> None:
    """Writes one line.

    Args:
        event: What happened, in one or two words.
        fields: Figures and hashes. Never a prompt.
        failed: Whether an exception is being handled; its type and place are added.
    """
    level = logging.ERROR if failed else logging.INFO
    _LOGGER.log(level, event, exc_info=failed, extra={"fields": fields})
