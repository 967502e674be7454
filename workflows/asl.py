"""The published state machines: ASL text with ``${Placeholder}`` for every resource.

The files are written by ``make asl`` and are what the laptop, the tests and people read. This
module needs the standard library alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from limner.contracts.errors import LimnerError

FOLDER: Final = Path(__file__).parent / "asl"
_PLACEHOLDER: Final = re.compile(r"\$\{([A-Za-z][A-Za-z0-9]*)\}")


def path(name: str) -> Path:
    """Where the published form of a machine lies."""
    return FOLDER / f"{name}.asl.json"


def placeholders(name: str) -> frozenset[str]:
    """The names that ``load`` wants filled in for this machine."""
    return frozenset(_PLACEHOLDER.findall(path(name).read_text(encoding="utf-8")))


def load(name: str, values: Mapping[str, str]) -> str:
    """Reads a published machine and fills in its placeholders.

    Args:
        name: Name of the machine, such as ``onboard``.
        values: A value for each placeholder, no more and no less. Values are plain text; they are
            escaped for JSON here.

    Returns:
        The definition, as CreateStateMachine takes it.

    Raises:
        LimnerError: ``INVALID_INPUT``, if a placeholder is missing or unknown.
    """
    wanted = placeholders(name)
    if missing := sorted(wanted - values.keys()):
        raise LimnerError("INVALID_INPUT", f"{name} lacks values for {', '.join(missing)}.")
    if unknown := sorted(values.keys() - wanted):
        raise LimnerError("INVALID_INPUT", f"{name} has no placeholder {', '.join(unknown)}.")
    template = path(name).read_text(encoding="utf-8")
    return _PLACEHOLDER.sub(lambda match: json.dumps(values[match[1]])[1:-1], template)
