"""The form of every moment in rows and events; it compares as text."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """The present moment as Step Functions writes it: ISO 8601, UTC, milliseconds, ``Z``."""
    return as_text(datetime.now(UTC))


def as_text(moment: datetime) -> str:
    """A moment, which knows its zone, in the form of all rows."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
