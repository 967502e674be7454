"""The type of what AWS's wires and ministack's functions carry."""

from __future__ import annotations

from typing import Any, TypeAlias

# Any JSON value, or what ministack passes around in its place. Checked where it is used.
Json: TypeAlias = Any
